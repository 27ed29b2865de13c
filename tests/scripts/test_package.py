"""The archive of the jobs environment has what executors need, at any path, and is whole or not there."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.loading import load_file

REPOSITORY = Path(__file__).resolve().parents[2]
VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
PACKAGES = f"lib/{VERSION}/site-packages"


package = load_file(REPOSITORY / "scripts" / "package.py", "fruits_package")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment and a library in a checkout of their own, at a path with a space."""
    root = tmp_path / "a checkout"
    folder = root / ".venvs" / "jobs"
    files = (
        *("numpy/__init__.py", "numpy-2.dist-info/METADATA", "tensorflow/__init__.py", "keras/models/a.py"),
        *("pyspark/__init__.py", "pyspark/jars/spark-core.jar", "fruits.pth", "a__mypyc.cpython.so"),
    )
    for name in files:
        write(folder / PACKAGES / name)
    write(folder / "bin" / "mypy")
    write(folder / "setup.stamp")
    (folder / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    write(root / "fruits" / "__init__.py", "WHERE = __file__")
    write(root / "fruits" / "lake" / "__init__.py")
    monkeypatch.setattr(package, "ROOT", root)
    monkeypatch.setattr(package, "ENVIRONMENT", folder)
    return folder


def write(file: Path, text: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def packed(tmp_path: Path, *arguments: str) -> tuple[int, Path]:
    archive = tmp_path / "build" / "env.tar.gz"
    return package.main(["--output", str(archive), *arguments]), archive


def test_it_has_the_library_and_the_packages_without_what_only_drivers_and_tests_use(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, archive = packed(tmp_path)
    assert code == 0
    with tarfile.open(archive) as tar:
        names = {entry.name for entry in tar if not entry.isdir()}
    inside = {name.removeprefix(f"{PACKAGES}/") for name in names}
    assert inside == {
        *("bin/python", "pyvenv.cfg", "numpy/__init__.py", "numpy-2.dist-info/METADATA", "pyspark/__init__.py"),
        *("fruits/__init__.py", "fruits/lake/__init__.py"),
    }
    told = capsys.readouterr().out
    assert str(archive) in told
    assert f"workers need {Path(sys.executable).resolve().with_name(VERSION)}" in told


def test_unpacked_anywhere_it_is_an_environment_of_its_own(environment: Path, tmp_path: Path) -> None:
    _, archive = packed(tmp_path)
    folder = tmp_path / "else where"
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="fully_trusted")  # noqa: S202
    question = "import sys, fruits; print(sys.prefix, fruits.WHERE, sep='\\n')"
    said = subprocess.run(
        [folder / "bin" / "python", "-c", question], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines() == [str(folder), str(folder / PACKAGES / "fruits" / "__init__.py")]


def test_the_workers_python_may_be_elsewhere(environment: Path, tmp_path: Path) -> None:
    code, archive = packed(tmp_path, "--python", f"/opt/py/bin/{VERSION}")
    assert code == 0
    with tarfile.open(archive) as tar:
        assert tar.getmember("bin/python").linkname == f"/opt/py/bin/{VERSION}"
        note = tar.extractfile("pyvenv.cfg")
        assert note
        assert b"home = /opt/py/bin\n" in note.read()


@pytest.mark.parametrize("python", ["python3", "/opt/py", "/opt/py/bin/python3.7", "bin/python3"])
def test_a_python_that_cannot_be_the_workers_is_refused(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], python: str
) -> None:
    code, archive = packed(tmp_path, "--python", python)
    assert code == 1
    assert not archive.exists()
    assert f"--python {python}: expected the absolute path of the workers' {VERSION}" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["setup.stamp", "bin/python"])
def test_an_environment_that_is_not_set_up_is_named_with_what_to_do(
    environment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    (environment / missing).unlink()
    code, archive = packed(tmp_path)
    assert code == 1
    assert not archive.exists()
    told = capsys.readouterr().err
    assert str(environment) in told
    assert "make setup" in told


def test_what_fails_leaves_the_archive_before(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, archive = packed(tmp_path)
    before = archive.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package, "add_python", full)
    code, _ = packed(tmp_path)
    assert code == 1
    assert "No space left on device" in capsys.readouterr().err
    assert archive.read_bytes() == before
    assert [file.name for file in archive.parent.iterdir()] == [archive.name]
