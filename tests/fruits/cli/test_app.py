"""What every command promises: JSON alone on stdout, errors without a stack trace, reading makes nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fruits.errors import ExitCode, FruitsError, TransientError
from fruits.settings import Settings
from local.stack import running_stack, server_pid, stop_s3

pytestmark = pytest.mark.jobs

READING = [
    ("status",),
    ("status", "--publications"),
    ("models",),
    ("quarantine", "list"),
    ("plan",),
    ("export", "embeddings", "-o", "{tmp}/out.csv"),
    ("export", "dataset", "-o", "{tmp}/out"),
    ("export", "model", "-o", "{tmp}/out.tflite"),
    ("report", "-o", "{tmp}/out.html"),
]
ON_A_LAKE = [
    *READING,
    ("identify", __file__),
    ("index",),
    ("rollback", "1", "--yes"),
    ("quarantine", "retry"),
    ("pin", "--why", "x"),
    ("unpin",),
    ("move-photos", "--why", "x", "--yes"),
]
HEAVY = ("tensorflow", "pyspark", "pyiceberg", "pyarrow", "boto3", "numpy", "pydantic")


def with_folder(arguments, tmp_path):
    return [argument.format(tmp=tmp_path) for argument in arguments]


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything under a folder, with size and time of writing."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def refused(result, code=ExitCode.BAD_INPUT):
    """What a command said that was refused, which is all that it said."""
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert result.stderr
    return result.stderr


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_json_is_one_document_and_nothing_else(fruits, published, arguments, tmp_path):
    result = fruits(*with_folder(arguments, tmp_path), "--json", settings=published)
    assert result.exit_code == 0, result.output
    assert isinstance(json.loads(result.stdout), dict)


def test_reading_changes_nothing_in_the_lake(fruits, new_lake, tmp_path):
    """In a lake that nobody has read before."""
    folder = tmp_path / "untouched"
    settings = new_lake(folder)
    before = files(folder)
    for arguments in READING:
        assert fruits(*with_folder(arguments, tmp_path), settings=settings).exit_code == 0
        assert files(folder) == before, arguments


@pytest.mark.parametrize("arguments", [one for one in ON_A_LAKE if one[0] != "plan"], ids=" ".join)
@pytest.mark.parametrize("there", ["nothing", "a folder", "an empty database", "a catalog without the tables"])
def test_where_there_is_no_lake_it_says_so_and_makes_nothing(fruits, tmp_path, arguments, there, stack):
    home = tmp_path / "home"
    home.mkdir()
    settings = Settings.load(
        lake=f"file://{home}/lake", catalog_uri=f"sqlite:///{home}/catalog.db", s3_endpoint=stack.endpoint
    )
    if there != "nothing":
        (home / "lake").mkdir()
    if there == "an empty database":
        (home / "catalog.db").touch()
    if there == "a catalog without the tables":
        from pyiceberg.catalog import load_catalog

        load_catalog("fruits", type="sql", uri=f"sqlite:///{home}/catalog.db").create_namespace("fruits")
    before = files(home)
    assert "no lake there" in refused(fruits(*with_folder(arguments, tmp_path), settings=settings))
    assert files(home) == before


def test_a_plan_where_there_is_no_lake_counts_all_photos_as_new_and_makes_nothing(answer, published, tmp_path):
    settings = published.model_copy(update={"lake": f"file://{tmp_path}/none"})
    plan = answer("plan", settings=settings)
    assert plan["counts"]["create"] == 3
    assert not (tmp_path / "none").exists()


def test_a_lake_and_a_catalog_of_different_places_are_refused(fruits, published, tmp_path):
    settings = published.model_copy(update={"lake": f"file://{tmp_path}"})
    assert f"catalog's tables are in {published.lake}" in refused(fruits("status", settings=settings))
    assert list(tmp_path.iterdir()) == []


def test_without_settings_and_without_data_it_says_what_to_run(fruits, tmp_path):
    assert f"no data yet in {tmp_path}/data; run `make run` first" in refused(
        fruits("status", "--data", tmp_path / "data")
    )
    assert list(tmp_path.iterdir()) == []


def test_wrong_settings_are_named(fruits, published, monkeypatch):
    wrong = published.model_copy(update={"bucket": "x"})
    assert re.search(r"FRUITS_BUCKET is 'x'.*at least 3", refused(fruits("status", settings=wrong)))


def test_a_catalog_that_is_no_database_is_named(fruits, published, tmp_path):
    (tmp_path / "catalog.db").write_text("this is no database, whatever its name says\n" * 50)
    wrong = Settings.load(lake=published.lake, catalog_uri=f"sqlite:///{tmp_path}/catalog.db")
    assert "catalog.db" in refused(fruits("status", settings=wrong))


def test_a_server_that_is_not_there_is_named(fruits, published):
    wrong = published.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"})
    assert "127.0.0.1:9" in refused(fruits("plan", settings=wrong), ExitCode.TRANSIENT)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("plan", "--prefix", "/train"), "without a leading slash"),
        (("plan", "--key", "elsewhere/a.jpg", "--prefix", "train/"), "does not start with the prefix"),
        (("plan", "--limit", "0"), "Invalid value for '--limit'"),
        (("plan", "--rebuild", "--limit", "3"), "leave `limit` empty"),
        (("plan", "--keys", "some"), "--keys 'some': expected a number, or `all`"),
        (
            ("report", "no-such-run", "-o", "{tmp}/a.html"),
            "'no-such-run': the lake has no documents.*manual_2, scheduled_1",
        ),
        (("report", "-o", "{tmp}/none/a.html"), "No such file or directory"),
        (("export", "vectors", "-o", "{tmp}/a.csv"), "No such command 'vectors'"),
        (("export", "features", "-o", "{tmp}/a.doc"), "'doc': expected --format"),
        (("export", "quarantine", "-o", "{tmp}/a.npz"), "expected parquet or csv"),
        (("export", "features", "-o", "{tmp}/none/a.csv"), "there is no folder"),
        (("export", "features", "-o", "{tmp}/a", "--format", "tfrecord"), "expected parquet or csv or npz"),
        (("export", "dataset", "-o", "{tmp}/a", "--format", "xlsx"), "'xlsx': expected --format"),
        (("export", "dataset", "-o", "{tmp}/a.parquet"), "name a folder"),
        (("export", "model", "-o", "{tmp}/none/a.tflite"), "there is no folder"),
        (("export", "model", "-o", "{tmp}/a.tflite", "--prototypes", "65"), "prototypes 65: expected.*1 to 64"),
        (("quarantine", "list", "--reason", "ugly"), r"reason 'ugly'.*empty \(2\)"),
        (("quarantine", "list", "--prefix", "nope"), "prefix 'nope': none of the 2 objects"),
        (("quarantine", "retry", "no.jpg"), "'no.jpg': not in quarantine"),
        (("rollback", "pub-000009", "--yes"), "pub-000002-.*, pub-000001-"),
        (("rollback", "1", "--yes", "--pin"), "--pin and --why go together"),
        (("rollback", "1", "--yes", "--why", "x"), "--pin and --why go together"),
        (("pin", "1", "--why", "x"), "readers see pub-000002-.*rollback 1 --pin"),
        (("pin", "1", "--yes", "--why", "x"), "readers see pub-000002-.*rollback 1 --pin"),
        (("pin", "--why", " "), "add --why"),
        (("move-photos", "--why", " ", "--yes"), "add --why"),
        (("status", "--runs", "few"), "Invalid value for '--runs'"),
        (("nonsense",), "nonsense"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else None,
)
def test_bad_input_is_named_and_ends_with_the_code_for_it(fruits, published, arguments, said, tmp_path):
    told = refused(fruits(*with_folder(arguments, tmp_path), settings=published))
    assert re.search(said, told, re.DOTALL), told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (("plan", "--prefix", "/train"), "without a leading slash", ExitCode.BAD_INPUT),
        (("plan", "--limit", "0"), "Invalid value for '--limit'", ExitCode.BAD_INPUT),
        (("quarantine", "retry", "no.jpg"), "'no.jpg': not in quarantine", ExitCode.BAD_INPUT),
        (("quarantine", "list", "--nonsense"), "No such option: --nonsense", ExitCode.BAD_INPUT),
        (("rollback", "1"), "needs --yes", ExitCode.BAD_INPUT),
        (("pin",), "Missing option '--why'", ExitCode.BAD_INPUT),
        (("nonsense",), "nonsense", ExitCode.BAD_INPUT),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, tuple) else None,
)
def test_as_json_an_error_is_one_document_too(fruits, published, arguments, said, code):
    result = fruits(*arguments, "--json", settings=published)
    assert result.exit_code == code
    error = json.loads(result.stdout)["error"]
    assert said in error["message"]
    assert error["exit_code"] == code


@pytest.mark.parametrize(
    ("error", "code"), [(TransientError("busy"), ExitCode.TRANSIENT), (ZeroDivisionError("busy"), ExitCode.UNEXPECTED)]
)
def test_as_json_a_transient_error_and_a_defect_have_codes_of_their_own(fruits, monkeypatch, error, code):
    def fail(data):
        raise error

    monkeypatch.setattr("fruits.cli.doctor.examine", fail)
    result = fruits("doctor", "--json")
    assert json.loads(result.stdout) == {"error": {"message": "busy", "exit_code": code}}
    assert result.exit_code == code


def test_an_error_cannot_act_on_the_terminal(fruits, monkeypatch):
    """Object keys stand in errors; the lines of the message stay lines."""

    def refuse(data):
        raise FruitsError("Kiwi/\x1b[31m\r1.jpg:\n  mend this")

    monkeypatch.setattr("fruits.cli.doctor.examine", refuse)
    assert refused(fruits("doctor")) == "Kiwi/\\x1b[31m\\x0d1.jpg:\n  mend this\n"


def run(*arguments, environment, **options):
    command = [sys.executable, "-m", "fruits", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)


def test_as_a_program_it_keeps_stdout_and_exit_code(published, environment_of, tmp_path):
    environment = environment_of(published)
    done = run("status", "--json", environment=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["publication"]["sequence"] == 2
    done = run("report", "nope", "-o", "a.html", environment=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (ExitCode.BAD_INPUT, "")
    assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy():
    code = "import sys; from fruits.cli.app import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "quarantine" in done.stdout
    assert not set(HEAVY) & set(done.stdout.splitlines()[-1].split())


class TestEmbedded:
    @pytest.fixture
    def data(self, tmp_path, fake_run):
        """An embedded stack that was run once: its bucket has one photo more than its lake."""
        with running_stack(tmp_path / "data") as running:
            settings = Settings.load(
                **{
                    name.removeprefix("FRUITS_").lower(): value
                    for name, value in running.environment.items()
                    if name.startswith("FRUITS_")
                }
            )
            running.client().put_object(Bucket="fruits", Key="train/Kiwi/1.jpg", Body=b"x")
            import numpy as np

            made = fake_run(settings)
            photos = {f"train/Kiwi/{n}.jpg": np.random.default_rng(n).random(8, np.float32) for n in range(2, 5)}
            made.publish("m", made.write(photos, "m"))
        stop_s3(tmp_path / "data")
        yield tmp_path / "data"
        stop_s3(tmp_path / "data")

    def test_a_command_that_reads_the_lake_starts_nothing(self, data, fruits):
        log = (data / "s3.log").read_bytes()
        result = fruits("status", "--data", data)
        assert result.exit_code == 0, result.output
        assert (data / "s3.log").read_bytes() == log

    @pytest.mark.heavy
    def test_a_command_that_needs_the_bucket_starts_the_s3_server_and_the_next_command_uses_it(self, data, fruits):
        before = dict(os.environ)
        for _ in range(2):
            result = fruits("plan", "--data", data, "--json")
            assert result.exit_code == 0, result.output
            assert json.loads(result.stdout)["counts"]["create"] == 1
            started = server_pid(data)
            assert started is not None
        assert server_pid(data) == started
        assert {name: value for name, value in os.environ.items() if name in before} == {
            name: value for name, value in before.items() if name in os.environ
        }

    def test_data_that_is_asked_for_wins_over_the_variables(self, data, fruits, published):
        result = fruits("status", "--data", data, "--json", settings=published)
        assert json.loads(result.stdout)["lake"] == f"file://{data}/lake"
