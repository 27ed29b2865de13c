"""The same jobs on a Spark standalone cluster: the same rows, whatever becomes of the workers."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

import fruits
from benchmarks.standalone import ENVIRONMENT, get_json, standalone, wait_for
from fruits.errors import ExitCode
from fruits.lake.catalog import Lake
from fruits.lake.pca_tables import load_statistics, load_versions
from fruits.run.state import run_key
from local.stack import free_ports
from tests.loading import load_file
from tests.planted import TOKEN, assert_none, files
from tests.spark_jobs.conftest import ROOT

pytestmark = [pytest.mark.jobs, pytest.mark.slow]

JOBS = ("featurize", "pca", "validate")
LIBRARY = Path(fruits.__file__).parent
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
PACKED = {"spark.pyspark.python": "./environment/bin/python", "spark.pyspark.driver.python": sys.executable}


@pytest.fixture(scope="module")
def cluster(stack, tmp_path_factory):
    with standalone(tmp_path_factory.mktemp("cluster"), workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def submit(chain, cluster):
    """Submits a job of a run to the cluster; returns the exit code and what it said."""

    def run(job, settings, run_id, *, script=None, **options):
        chain.lapse(settings)
        script = script or ROOT / "spark_jobs" / f"{job}.py"
        with chain.environment(settings):
            process = cluster.submit(script, "--run", run_key(run_id), options=options)
        try:
            said, _ = process.communicate(timeout=300)
        finally:
            process.kill()
        return process.returncode, said

    return run


@pytest.fixture
def planned(chain, new_settings, first):
    """Settings of a fresh lake in S3 with a planned run over the first run's bucket, and the run's id."""

    def plan(run_id, **overrides):
        settings = new_settings("s3", bucket=first.settings.bucket, few_photos=0, **overrides)
        chain.plan(settings, run_id)
        return settings

    return plan


def contents(rows):
    """Rows but for the run that wrote them, with the bits of their vectors."""
    return [
        {
            name: np.float32(value).tobytes() if name == "vector" else value
            for name, value in row.items()
            if name != "run_id"
        }
        for row in rows
    ]


def test_the_chain_gives_what_it_gives_in_local_mode(chain, first, cluster, submit, planned, stack, monkeypatch):
    monkeypatch.setenv("SLACK_TOKEN", TOKEN)
    settings, local = planned("clustered"), first.settings
    earlier = cluster.applications()
    both = {  # no task starts before both executors are there
        "spark.cores.max": 2,
        "spark.scheduler.minRegisteredResourcesRatio": 1,
        "spark.scheduler.maxRegisteredResourcesWaitingTime": "100s",
    }
    outputs = {}
    for job in JOBS:
        code, outputs[job] = submit(job, settings, "clustered", **both)
        assert code == ExitCode.OK, outputs[job]
    chain.publish(settings, "clustered")

    for table in ("features", "quarantine"):
        assert contents(chain.rows(settings, table)) == contents(chain.rows(local, table))
    documents = chain.documents(settings, "clustered")
    assert documents.featurize.result.images == len(first.photos)
    verdicts = [{gate.name: gate.passed for gate in run.validate.result.gates} for run in (documents, first.documents)]
    assert verdicts[0] == verdicts[1]

    (mine, my_pca), (theirs, their_pca) = (fitted(chain, one, first.documents.planned) for one in (settings, local))
    assert mine.n == theirs.n
    np.testing.assert_allclose(mine.mean, theirs.mean, rtol=1e-12, atol=1e-12 * np.abs(theirs.mean).max())
    np.testing.assert_allclose(mine.scatter, theirs.scatter, rtol=1e-12, atol=1e-12 * np.abs(theirs.scatter).max())
    assert my_pca.components.shape == their_pca.components.shape
    cosines = np.linalg.svd(my_pca.components @ their_pca.components.T, compute_uv=False)
    np.testing.assert_allclose(cosines, 1, atol=1e-9)
    embeddings = [chain.rows(one, "embeddings") for one in (settings, local)]
    assert [row["key"] for row in embeddings[0]] == [row["key"] for row in embeddings[1]]
    mine, theirs = ([row["embedding"] for row in rows] for rows in embeddings)
    np.testing.assert_allclose(mine, theirs, atol=1e-4)

    # Each executor had its share, and the history server tells of each job from its event log.
    cluster.start("history.HistoryServer")
    mine = cluster.applications() - earlier

    def listed():
        found = {one["id"]: one["name"] for one in get_json(f"{cluster.history}/applications?status=completed")}
        return mine <= set(found) and {found[application]: application for application in mine}

    names = wait_for(listed, "the history server lists the applications")
    assert {f"fruits {job}" for job in JOBS} == set(names)
    executors = get_json(f"{cluster.history}/applications/{names['fruits featurize']}/executors")
    assert {one["totalTasks"] > 0 for one in executors if one["id"] != "driver"} == {True}
    assert len(executors) == 3

    # No log of a driver, an executor or a daemon has a secret, and no event log.
    left = files(cluster.folder, "*/environment/*")
    assert any(name.endswith("/stderr") for name in left)
    assert any("/events_" in name and b"SparkListenerEnvironmentUpdate" in left[name] for name in left)
    assert_none((stack.secret_key, TOKEN), {**left, **outputs})


def fitted(chain, settings, planned):
    """Statistics and PCA that a lake's readers find."""
    lake, snapshots = Lake.open(settings), chain.published(settings).snapshots
    moments = load_statistics(lake, snapshots["pca_statistics"], planned.model_id, planned.backbone.feature_width)
    return moments, load_versions(lake, snapshots["pca_models"], planned.model_id)[-1].pca


class TestPackedEnvironment:
    def test_executors_run_the_archives_python_and_give_the_same_rows(self, chain, first, submit, planned, tmp_path):
        archive = tmp_path / "jobs-env.tar.gz"
        assert package().main(["--output", str(archive)]) == 0
        driver = tmp_path / "driver.py"
        driver.write_text(WHERE_PYTHON_IS)
        settings = planned("packed")
        options = {"--archives": f"{archive}#environment", "spark.cores.max": 1, **PACKED}
        code, said = submit("featurize", settings, "packed", script=driver, **options)
        assert code == ExitCode.OK, said
        prefix, library = next(line for line in said.splitlines() if line.startswith("EXECUTOR ")).split()[1:]
        assert "/work-" in prefix
        assert prefix.endswith("/environment")
        assert library == f"{prefix}/lib/{PYTHON}/site-packages/fruits/__init__.py"
        assert contents(chain.branch_rows(settings, "packed", "features")) == contents(
            chain.rows(first.settings, "features")
        )

    def test_another_release_is_refused_with_what_to_do(self, chain, submit, planned, tmp_path):
        archive = altered_environment(tmp_path)
        settings = planned("altered")
        options = {"--archives": f"{archive}#environment", "spark.cores.max": 1, **PACKED}
        code, said = submit("featurize", settings, "altered", **options)
        assert code == ExitCode.BAD_INPUT, said
        document = chain.documents(settings, "altered").featurize
        assert not document.retryable
        assert f"is of another release than the driver: it has fruits {fruits.__version__}+" in document.error
        assert "make package" in document.error
        assert chain.branch_rows(settings, "altered", "features") == []


WHERE_PYTHON_IS = f"""
import sys
sys.path.insert(0, {str(ROOT / "spark_jobs")!r})
import featurize, pyarrow as pa
from fruits.spark.job import run_job
from fruits.spark.session import map_batches
from pyspark import cloudpickle
cloudpickle.register_pickle_by_value(featurize)

def work(job):
    def where(batches):
        import os, sys, fruits
        for _ in batches:
            yield pa.RecordBatch.from_pylist([{{"said": f"{{os.path.abspath(sys.prefix)}} {{fruits.__file__}}"}}])
    rows = map_batches(job.tables.spark.range(0, 1, 1, 1), where, pa.schema([("said", pa.string())]))
    print("EXECUTOR", rows.first().said, flush=True)
    featurize.featurize(job)

sys.exit(run_job("featurize", "", work, None))
"""


def package():
    """The script behind `make package`."""
    return load_file(ROOT / "scripts" / "package.py", "fruits_package")


def altered_environment(folder):
    """An archive like those of `make package` with one source of ours altered; all else is where it is here."""
    archive, packages = folder / "altered.tar.gz", f"lib/{PYTHON}/site-packages"
    alteration = b"\nSPECKLE = 1\n"
    with tarfile.open(archive, "w:gz") as tar:
        package().add_python(tar, package().python_of(ENVIRONMENT))
        tar.add(
            LIBRARY, f"{packages}/fruits", filter=lambda entry: None if entry.name.endswith("/decode.py") else entry
        )
        files = {
            f"{packages}/fruits/photos/decode.py": (LIBRARY / "photos" / "decode.py").read_bytes() + alteration,
            f"{packages}/others.pth": f"{ENVIRONMENT / packages}\n".encode(),
        }
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return archive


def test_a_worker_that_dies_in_the_middle_changes_no_row(chain, first, cluster, planned):
    settings, port = planned("struck", photos_per_task=1), free_ports(1)[0]
    options = {
        "spark.dynamicAllocation.enabled": "true",
        "spark.dynamicAllocation.shuffleTracking.enabled": "true",
        "spark.dynamicAllocation.minExecutors": 2,
        "spark.ui.enabled": "true",
        "spark.ui.port": port,
    }
    chain.lapse(settings)
    with chain.environment(settings):
        process = cluster.submit(ROOT / "spark_jobs" / "featurize.py", "--run", run_key("struck"), options=options)
    api = f"http://127.0.0.1:{port}/api/v1/applications"

    def in_the_middle():
        for application in get_json(api):
            stages = get_json(f"{api}/{application['id']}/stages?status=active")
            if any(3 <= one["numCompleteTasks"] < one["numTasks"] / 2 for one in stages):
                return application["id"]
        return None

    try:
        application = wait_for(in_the_middle, "featurize is under way", seconds=200)
        cluster.kill_worker()
        said, _ = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == ExitCode.OK, said
    lost = [event for event in events(cluster, application) if event["Event"] == "SparkListenerExecutorRemoved"]
    assert lost, "the executor was gone before the job was"
    for table in ("features", "quarantine"):
        assert contents(chain.branch_rows(settings, "struck", table)) == contents(chain.rows(first.settings, table))
    assert chain.documents(settings, "struck").featurize.result.images == len(first.photos)
    cluster.start_worker()


def events(cluster, application):
    """The events that an application's log has."""
    files = sorted(file for file in cluster.event_logs.glob(f"*{application}*/events_*"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


class TestAClusterThatCannot:
    def test_workers_that_are_too_small_end_the_wait(self, chain, submit, planned):
        error = self.failure(chain, submit, planned, ExitCode.TRANSIENT, seconds=5, **{"spark.executor.memory": "64g"})
        assert "no executor within 5 s (FRUITS_EXECUTOR_SECONDS)" in error
        assert "spark.executor.memory 64g" in error

    def test_executors_that_cannot_start_end_the_wait(self, chain, submit, planned):
        """The master starts them again and again: a worker's Java does as an older Spark or a wrong option would."""
        options = {"spark.executor.extraJavaOptions": "-XX:MaxMetaspaceSize=none"}
        error = self.failure(chain, submit, planned, ExitCode.TRANSIENT, seconds=5, **options)
        assert "no executor within 5 s" in error
        assert "executors end as soon as they begin (work/<application>/<number>/stderr on a worker" in error

    @staticmethod
    def failure(chain, submit, planned, expected, seconds=600, **options):
        """What the job's document says of its failure; its log has no stack trace of Python's."""
        settings = planned("in-vain", executor_seconds=seconds)
        code, said = submit("featurize", settings, "in-vain", **options)
        assert code == expected, said
        assert "Traceback" not in said
        document = chain.documents(settings, "in-vain").featurize
        assert document.error in said
        return document.error
