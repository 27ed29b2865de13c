"""A worker runs the jobs' functions only if it is of the driver's release."""

import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import fruits
from fruits.errors import ExitCode, FruitsError
from fruits.run.documents import read_documents, run_document
from fruits.settings import Settings
from fruits.spark.cluster import explain_failure
from fruits.spark.release import source_digest
from fruits.spark.session import run_job

LIBRARY = Path(fruits.__file__).parent


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "fruits"
    shutil.copytree(LIBRARY, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def alter(folder: Path) -> None:
    file = folder / "photos" / "decode.py"
    file.write_text(f"{file.read_text()}\nSPECKLE = 1\n")


def rename(folder: Path) -> None:
    (folder / "photos" / "decode.py").rename(folder / "photos" / "pictures.py")


def add(folder: Path) -> None:
    (folder / "lake" / "more.py").write_text("")


def move_text_between_files(folder: Path) -> None:
    first, second = folder / "errors.py", folder / "serve/export.py"
    text = first.read_text()
    first.write_text(text[:-9])
    second.write_text(text[-9:] + second.read_text())


@pytest.mark.parametrize("change", [alter, rename, add, move_text_between_files])
def test_any_change_of_a_source_is_another_release(library: Path, change: Callable[[Path], None]) -> None:
    before = source_digest(library)
    assert before == source_digest(LIBRARY)
    change(library)
    assert source_digest(library) != before


def test_what_python_and_people_leave_behind_is_none(library: Path) -> None:
    before = source_digest(library)
    (library / "__pycache__").mkdir()
    (library / "__pycache__" / "images.cpython-311.pyc").write_bytes(b"compiled")
    (library / "notes.txt").write_text("a note")
    assert source_digest(library) == before


def test_a_library_in_an_archive_is_of_the_same_release(library: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "library"), "zip", tmp_path, "fruits"))
    assert source_digest(zipfile.Path(archive, "fruits/")) == source_digest(LIBRARY)


def test_a_job_of_another_release_than_airflows_is_refused() -> None:
    ours = fruits.spark.release.library_release()
    for told in ({}, {"FRUITS_RELEASE": ours}):
        fruits.spark.release.check_release(told)
    with pytest.raises(FruitsError, match=r"Airflow has fruits 9\.9\+abc, but .* has 0\..*; upload jobs-env"):
        fruits.spark.release.check_release({"FRUITS_RELEASE": "9.9+abc"})


def test_a_refused_job_leaves_the_reason_in_its_document(
    folder_lake: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that Airflow shows it, and does not try again."""
    for name, value in {
        "LAKE": folder_lake.lake,
        "CATALOG_URI": "sqlite:////nowhere/x.db",
        "RELEASE": "9.9+abc",
    }.items():
        monkeypatch.setenv(f"FRUITS_{name}", value)
    with run_document(folder_lake, "plan", "a run", "a_run") as plan:
        plan.record(slug="a_run", request={"dry_run": True})
    assert run_job("featurize", "", lambda _: None, ["--run", "a_run"]) == ExitCode.BAD_INPUT
    document = read_documents(folder_lake, "a_run")["featurize"]
    assert "upload jobs-env.tar.gz and spark_jobs/" in document["error"]
    assert document["mendable"]


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
            RuntimeError, match=r"it has fruits none that can be asked .*; the driver has fruits 0\.1\.0\+"
        ):
            list(checked(iter([1])))

    @staticmethod
    def sent_to_a_worker(function):  # type: ignore[no-untyped-def]
        from pyspark import cloudpickle

        return pickle.loads(cloudpickle.dumps(fruits.spark.release.same_release(function)))  # noqa: S301


class _Bomb:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[object, ...]]:
        return _explode, ()


def _explode() -> None:
    raise AssertionError("unpickled on a worker of another release")
