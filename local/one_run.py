"""``python -m local.one_run DAG``: one run of a DAG, by the function behind ``airflow dags test``.

The run's conf, as JSON, comes through standard input, so Airflow is imported while the caller still uploads photos.
Three more things are spared (Airflow 3.3):

- The tasks ask Airflow's execution API, which is served inside the process. For each of its nine versions it would make
  all routes anew. The tasks are of the same release, and ask for the newest version.
- The command reads the DAG files twice, because ``DAG.test`` writes all DAGs into the database as well.
- When the run has ended there is nothing to tidy up: what counts is in the database.
"""

import json
import logging
import os
import sys
import warnings
from typing import Any


def main() -> int:
    """Run the DAG; returns the exit code. Without a conf there is no run: the caller could not get ready."""
    warnings.filterwarnings("ignore", "Using `httpx` with `starlette.testclient` is deprecated")
    import_airflow()
    conf = sys.stdin.read()
    return run(sys.argv[1], json.loads(conf)) if conf else 1


def import_airflow() -> None:
    """Import what every run needs, and make the execution API in the version that its tasks ask for."""
    import airflow.dag_processing.dagbag  # noqa: F401
    from airflow.api_fastapi.execution_api import routes, versions
    from airflow.sdk.execution_time.supervisor import in_process_api_server
    from cadwyn import HeadVersion, Version, VersionBundle
    from cadwyn.route_generation import _DELETED_ROUTE_TAG as OLDER_VERSIONS_ONLY

    versions.bundle = VersionBundle(HeadVersion(), Version(versions.bundle.versions[0].value))
    router = routes.execution_api_router
    router.routes = [route for route in router.routes if OLDER_VERSIONS_ONLY not in getattr(route, "tags", ())]
    in_process_api_server().app  # noqa: B018 -- made at its first use


def run(dag_id: str, conf: dict[str, Any]) -> int:
    """Run the DAG; returns the exit code."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import BundleDagBag
    from airflow.providers_manager import ProvidersManager
    from airflow.utils.state import DagRunState

    ProvidersManager().initialize_providers_configuration()
    (bundle,) = DagBundlesManager().get_all_dag_bundles()
    bundle.initialize()
    file = bundle.path / f"{dag_id}.py"
    bag = BundleDagBag(dag_folder=file, bundle_path=bundle.path, bundle_name=bundle.name)
    if errors := bag.import_errors:
        print("\n".join(errors.values()))
        return 1
    ended = bag.dags[dag_id].test(run_conf=conf)
    return int(ended.state == DagRunState.FAILED)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
