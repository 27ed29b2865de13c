"""A worker runs the jobs' functions only if it is of the driver's release."""

import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath

import grimp
import pytest

import fruits
from fruits.backbones.card import Card, Preprocessing
from fruits.errors import ExitCode, FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.publication import current_base
from fruits.run.documents import read_documents, task_document
from fruits.run.request import RunRequest
from fruits.run.state import PlannedRun
from fruits.settings import Settings
from fruits.spark import executors
from fruits.spark.cluster import explain_failure
from fruits.spark.job import run_job
from fruits.spark.release import EXECUTOR_SOURCES, driver_sources, source_digest

LIBRARY = Path(fruits.__file__).parent
NEVER_ON_AN_EXECUTOR = {"fruits.backbones.build"}
"""What executors' modules import inside a function that only drivers call: `stage` builds what is not staged yet."""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "fruits"
    shutil.copytree(LIBRARY, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def alter(file: Path) -> None:
    file.write_text(f"{file.read_text()}\nSPECKLE = 1\n")


def alter_a_decoder(folder: Path) -> None:
    alter(folder / "photos" / "decode.py")


def alter_the_lease(folder: Path) -> None:
    alter(folder / "run" / "lease.py")


def rename(folder: Path) -> None:
    (folder / "photos" / "decode.py").rename(folder / "photos" / "pictures.py")


def add(folder: Path) -> None:
    (folder / "lake" / "more.py").write_text("")


def move_text_between_files(folder: Path) -> None:
    first, second = folder / "errors.py", folder / "stores.py"
    text = first.read_text()
    first.write_text(text[:-9])
    second.write_text(text[-9:] + second.read_text())


def executors_digest(package: Traversable) -> str:
    return source_digest(package, EXECUTOR_SOURCES)


def drivers_digest(package: Traversable) -> str:
    return source_digest(package, driver_sources(package))


@pytest.mark.parametrize("change", [alter_a_decoder, alter_the_lease, rename, add, move_text_between_files])
def test_any_change_of_a_jobs_source_is_another_release_of_drivers(
    library: Path, change: Callable[[Path], None]
) -> None:
    before = drivers_digest(library)
    assert before == drivers_digest(LIBRARY)
    change(library)
    assert drivers_digest(library) != before


@pytest.mark.parametrize("name", EXECUTOR_SOURCES)
def test_any_change_of_an_executors_source_is_another_release_of_executors(library: Path, name: str) -> None:
    before = executors_digest(library)
    alter(library / name)
    assert executors_digest(library) != before


@pytest.mark.parametrize("name", ["run/lease.py", "lake/publication.py", "analysis/gates.py", "spark/session.py"])
def test_executors_stay_in_use_when_a_drivers_source_changes(library: Path, name: str) -> None:
    before = executors_digest(library)
    alter(library / name)
    assert executors_digest(library) == before


@pytest.mark.parametrize("name", ["cli/app.py", "airflow/alerts.py", "serve/export.py", "steps/plan.py", "__main__.py"])
def test_clusters_stay_in_use_when_no_job_changes(library: Path, name: str) -> None:
    before = executors_digest(library), drivers_digest(library)
    alter(library / name)
    assert (executors_digest(library), drivers_digest(library)) == before


def test_what_python_and_people_leave_behind_is_none(library: Path) -> None:
    before = drivers_digest(library)
    (library / "__pycache__").mkdir()
    (library / "__pycache__" / "images.cpython-311.pyc").write_bytes(b"compiled")
    (library / "notes.txt").write_text("a note")
    assert drivers_digest(library) == before


def test_a_library_in_an_archive_is_of_the_same_release(library: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "library"), "zip", tmp_path, "fruits"))
    packed = zipfile.Path(archive, "fruits/")
    assert (executors_digest(packed), drivers_digest(packed)) == (executors_digest(LIBRARY), drivers_digest(LIBRARY))


def module_of(source: str) -> str:
    """A file of the library as Python imports it."""
    parts = PurePosixPath("fruits", source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_executors_sources_import_nothing_of_ours_that_is_not_among_them() -> None:
    """Wherever the import stands: at the top of the file, or in a function that runs once in a thousand photos."""
    ours = set(map(module_of, EXECUTOR_SOURCES))
    graph = grimp.build_graph("fruits", cache_dir=None)
    imported = set().union(*map(graph.find_modules_directly_imported_by, ours))
    assert imported - ours == NEVER_ON_AN_EXECUTOR


@pytest.mark.heavy
def test_a_new_python_that_gets_a_function_for_executors_imports_exactly_them() -> None:
    """A package's `__init__` that grows an import would take its modules to every executor."""
    from pyspark import cloudpickle

    sent = cloudpickle.dumps(fruits.spark.release.same_release(executors.partial_statistics(3)))
    program = (
        "import json, pickle, sys\n"
        "import pyarrow as pa\n"
        "photos = pa.RecordBatch.from_pylist([{'key': 'a', 'label': 'Kiwi', 'vector': [1.0, 2.0, 3.0]}])\n"
        "function = pickle.load(sys.stdin.buffer)\n"
        "before = [name for name in sys.modules if name.partition('.')[0] == 'fruits']\n"
        "rows = list(function(iter([photos])))\n"
        "after = [name for name in sys.modules if name.partition('.')[0] == 'fruits']\n"
        "print(json.dumps([before, sorted(after), len(rows)]))"
    )
    done = subprocess.run([sys.executable, "-c", program], input=sent, capture_output=True, check=True)
    assert json.loads(done.stdout) == [[], sorted(map(module_of, EXECUTOR_SOURCES)), 2]


def test_a_job_of_another_release_than_airflows_is_refused() -> None:
    ours = fruits.spark.release.library_release()
    for environment in ({}, {"FRUITS_RELEASE": ours}):
        fruits.spark.release.check_release(environment)
    with pytest.raises(FruitsError, match=r"Airflow has fruits 9\.9\+abc, but .* has 0\..*; upload jobs-env"):
        fruits.spark.release.check_release({"FRUITS_RELEASE": "9.9+abc"})


def test_a_refused_job_leaves_the_reason_in_its_document(
    folder_lake: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that Airflow shows it, and does not try again."""
    planned = PlannedRun(
        key="a_run",
        run_id="a run",
        planned_at=datetime.now(UTC),
        request=RunRequest(prefix="", dry_run=True),
        base=current_base(Lake.open(folder_lake)),
        backbone=Card("m-1", "m", "seed 1", None, Preprocessing(8, 8), 3, "0", 1, "none", {}),
        counts={},
        known_rows=0,
        remaining=0,
        building=False,
        work=True,
    )
    with task_document(folder_lake, "plan", planned.key, planned.run_id) as plan:
        plan.record(planned)
    catalog = folder_lake.catalog_uri.get_secret_value()
    for name, value in {"LAKE": folder_lake.lake, "CATALOG_URI": catalog, "RELEASE": "9.9+abc"}.items():
        monkeypatch.setenv(f"FRUITS_{name}", value)
    assert run_job("featurize", "", lambda _: None, ["--run", "a_run"]) == ExitCode.BAD_INPUT
    document = read_documents(folder_lake, "a_run").featurize
    assert document is not None
    assert "upload jobs-env.tar.gz and spark_jobs/" in str(document.error)
    assert not document.retryable


@pytest.mark.jobs
class TestSameRelease:
    def test_what_decides_the_pixels_is_part_of_it(self) -> None:
        import PIL

        assert fruits.spark.release.release()["Pillow"] == PIL.__version__

    def test_the_same_release_runs_the_function(self) -> None:
        checked = self.sent_to_a_worker(lambda batches: (2 * batch for batch in batches))
        assert list(checked(iter([1, 2]))) == [2, 4]

    def test_another_one_is_refused_with_what_differs_and_where(self, monkeypatch: pytest.MonkeyPatch) -> None:
        checked = self.sent_to_a_worker(lambda batches: batches)
        there = {**fruits.spark.release.release(), "fruits": "0.1.0+0123456789ab", "numpy": "1.0"}
        monkeypatch.setattr(fruits.spark.release, "release", lambda: there)
        monkeypatch.setattr("socket.gethostname", lambda: "fruit-worker-7")
        with pytest.raises(RuntimeError) as refusal:
            list(checked(iter([1])))
        message = str(explain_failure(str(refusal.value)))
        assert message.startswith(
            "worker fruit-worker-7 is of another release than the driver: it has fruits 0.1.0+0123456789ab, numpy 1.0; "
            "the driver has fruits "
        )
        assert "make up" in message
        assert "make package" in message

    @pytest.mark.parametrize("missing", ["fruits", "fruits.spark.release"])
    def test_a_worker_from_before_releases_is_refused_and_never_meets_the_function(
        self, monkeypatch: pytest.MonkeyPatch, missing: str
    ) -> None:
        """A function refers to modules of ours: unpickling it on such a worker would be the first thing to fail."""
        bomb = _Bomb()
        checked = self.sent_to_a_worker(lambda batches: (bomb, batches))
        monkeypatch.setitem(sys.modules, missing, None)
        monkeypatch.setitem(sys.modules, "fruits.spark.release", None)
        with pytest.raises(
            RuntimeError, match=r"it has fruits none that can be asked .*; the driver has fruits \d+\.\d+\.\d+\+"
        ):
            list(checked(iter([1])))

    @staticmethod
    def sent_to_a_worker(function):
        from pyspark import cloudpickle

        return pickle.loads(cloudpickle.dumps(fruits.spark.release.same_release(function)))  # noqa: S301


class _Bomb:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[object, ...]]:
        return _explode, ()


def _explode() -> None:
    raise AssertionError("unpickled on a worker of another release")
