"""The DAG fruit_maintenance: its params are the request's, and it works under an id of its own."""

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fruits.lake.catalog import Lake
from fruits.run.documents import read_documents
from fruits.run.lease import current_lease
from fruits.run.request import MaintenanceRequest
from fruits.run.state import run_key
from fruits.settings import Settings

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).parents[2]
RUN_ID = "scheduled__2026-11-22T00:00:00+00:00"  # one that fruit_features has as well


@pytest.fixture
def context(module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What a task of a run gets, with settings of a lake of its own."""
    monkeypatch.setenv("FRUITS_LAKE", f"file://{tmp_path}/lake")
    monkeypatch.setenv("FRUITS_CATALOG_URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("FRUITS_RETENTION_DAYS", "7")
    run = SimpleNamespace(dag_id="fruit_maintenance")
    params = {name: param.value for name, param in module.PARAMS.items()}
    context = {"params": params, "run_id": RUN_ID, "dag_run": run}
    monkeypatch.setattr(module, "get_current_context", lambda: context)
    return context


def test_the_params_are_those_that_maintenance_understands(module: ModuleType) -> None:
    assert set(module.PARAMS) == set(MaintenanceRequest.model_fields)


def test_the_plan_writes_the_request_where_the_job_reads_it(module: ModuleType, context: dict[str, Any]) -> None:
    context["params"]["dry_run"] = True
    Lake.open(Settings.load())  # a dry run makes no tables

    run = module.plan.function(module.prepare.function())

    planned = read_documents(Settings.load(), run).plan_maintenance
    assert planned is not None
    assert planned.result.request == MaintenanceRequest(retention_days=7, retention_publications=10, dry_run=True)
    assert planned.result.key == run != run_key(RUN_ID)


def test_the_lease_is_that_of_the_run_that_the_job_works_as(module: ModuleType, context: dict[str, Any]) -> None:
    run = module.plan.function(module.prepare.function())
    module.dag.get_task("wait_for_lease").execute(context)
    lease = current_lease(Settings.load())
    assert lease is not None
    assert lease.run == run


def test_an_unknown_param_is_refused_before_the_run_waits(module: ModuleType, context: dict[str, Any]) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    context["params"]["dryrun"] = True
    with pytest.raises(AirflowFailException, match=r"'dryrun': .* did you mean 'dry_run'"):
        module.prepare.function()
    assert current_lease(Settings.load()) is None


def test_it_checks_its_params_then_acquires_the_lease_then_plans_then_works(module: ModuleType) -> None:
    tasks = [task.task_id for task in module.dag.topological_sort()]
    assert tasks == ["prepare", "wait_for_lease", "plan", "maintain", "verify"]
    assert [task.task_id for task in module.dag.leaves] == ["verify"]


def test_spark_does_the_work(module: ModuleType) -> None:
    task = module.dag.get_task("maintain")
    assert Path(task.application) == ROOT / "spark_jobs" / "maintain.py"
    assert task.application_args[0] == "--run"
    assert "task_ids='plan', dag_id='fruit_maintenance'" in task.application_args[1]


def test_it_runs_weekly_and_never_beside_itself(module: ModuleType) -> None:
    assert module.dag.timetable.expression == "0 0 * * 0"
    assert (module.dag.catchup, module.dag.max_active_runs) == (False, 1)


@pytest.mark.parametrize(("name", "wrong"), [("retention_days", 0), ("orphan_days", 1), ("dry_run", "no")])
def test_a_param_out_of_range_is_refused(module: ModuleType, name: str, wrong: object) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError):
        module.PARAMS[name].resolve(wrong)
