"""`make run` as a person types it: photos in a folder, one command, published tables and a summary."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import psutil
import pytest

from fruits.errors import ExitCode, FruitsError
from fruits.run.request import RunRequest
from fruits.settings import Settings
from fruits.steps.plan import plan_run
from fruits.steps.prepare import prepare
from local.airflow import LogReader
from local.stack import Stack, running_stack, stop_s3
from sample_photos import BROKEN, LABELS, draw, generate, photo_key
from tests.environments import ROOT, unconfigured
from tests.planted import TOKEN, assert_none, files, rows

pytestmark = [pytest.mark.airflow, pytest.mark.heavy, pytest.mark.story]

KINDS, TRAIN, TEST, SIZE = 6, 8, 3, (100, 160)
SOUND = KINDS * (TRAIN + TEST)
# 18 held-out photos: chance moves the probe's accuracy by far more than the gate allows a large bucket.
LENIENT = {"FRUITS_MIN_PROBE_RATIO": "0.3"}

ADDED = [(label, "Training", TRAIN) for label in LABELS[:3]] + [(LABELS[0], "Test", TEST)]
REPLACED = [(LABELS[3], "Training", 0), (LABELS[4], "Test", 1)]
DELETED = (LABELS[5], "Training", 2)


@dataclass(frozen=True)
class Ran:
    """A finished run; ``features`` are the published rows, ETag and run id by key."""

    out: str
    jvms: int
    seconds: float
    summary: dict[str, Any]
    features: dict[str, tuple[str, str]]
    embeddings: dict[str, str]


@dataclass(frozen=True)
class Done:
    """A finished command; ``jvms`` is how many JVMs it was seen to start."""

    code: int
    out: str
    err: str
    jvms: int


def command(data: Path, images: Path, summary: Path, **variables: str) -> Done:
    """`python -m local run` in an environment where only ``variables`` are configured."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "local", "--data", str(data),
            "run", "--images", str(images), "--summary", str(summary),
        ],
        env=unconfigured(**variables),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        jvms = pool.submit(jvms_of, psutil.Process(process.pid))
        out, err = process.communicate()
        return Done(process.returncode, out, err, jvms.result())


def jvms_of(process: psutil.Process) -> int:
    """How many JVMs a process and its descendants start until it ends. A JVM lives for longer than two looks."""
    seen: set[tuple[int, float]] = set()
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        with suppress(psutil.NoSuchProcess):
            for child in process.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if child.name() == "java":
                        seen.add((child.pid, child.create_time()))
        time.sleep(0.05)
    return len(seen)


@dataclass(frozen=True)
class Installation:
    """A data folder and a folder of photos."""

    data: Path
    photos: Path

    def run(self, **variables: str) -> Ran:
        """Run the command and read what it left, by what its summary says."""
        path = self.data.with_name("summary.json")
        path.unlink(missing_ok=True)
        start = time.perf_counter()
        done = command(self.data, self.photos, path, **LENIENT, **variables)
        seconds = time.perf_counter() - start
        assert done.code == 0, f"{done.out}\n{done.err}"
        summary = json.loads(path.read_text())
        rows = self.table(summary["catalog"], "features")
        embeddings = self.table(summary["catalog"], "embeddings")
        return Ran(
            done.out, done.jvms, seconds, summary,
            features={row["key"]: (row["etag"], row["run_id"]) for row in rows},
            embeddings={row["key"]: row["etag"] for row in embeddings if row["pca_id"] == summary["pca"]["pca_id"]},
        )  # fmt: skip

    @staticmethod
    def table(catalog: dict[str, Any], name: str) -> list[dict[str, Any]]:
        """Rows of a table, read as somebody does who has nothing but the summary."""
        from pyiceberg.catalog import load_catalog

        opened = load_catalog(catalog["name"], **catalog["properties"])
        return opened.load_table(f"{catalog['namespace']}.{name}").scan().to_arrow().to_pylist()


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("run")
    generate(folder / "photos", kinds=KINDS, per_kind_train=TRAIN, per_kind_test=TEST, size=SIZE)
    yield Installation(folder / "data", folder / "photos")
    stop_s3(folder / "data")


@pytest.fixture(scope="module")
def first(installation: Installation) -> Ran:
    """A run over a fresh installation."""
    return installation.run(SLACK_TOKEN=TOKEN)


@pytest.fixture(scope="module")
def second(installation: Installation, first: Ran) -> Ran:
    """The same again."""
    return installation.run()


@pytest.fixture(scope="module")
def third(installation: Installation, second: Ran) -> Ran:
    """After four photos were added, two replaced and one deleted."""
    for label, split, number in ADDED:
        write(installation.photos, label, split, number, seed=0)
    for label, split, number in REPLACED:
        write(installation.photos, label, split, number, seed=1)
    (installation.photos / photo_key(*DELETED)).unlink()
    return installation.run()


def write(folder: Path, label: str, split: Any, number: int, seed: int) -> None:
    (folder / photo_key(label, split, number)).write_bytes(draw(label, split, number, seed, size=SIZE))


def keys(photos: list[tuple[str, Any, int]]) -> set[str]:
    return {photo_key(*photo) for photo in photos}


def test_the_first_run_publishes_every_photo(first: Ran, installation: Installation) -> None:
    files = {
        path.relative_to(installation.photos).as_posix() for path in installation.photos.rglob("*") if path.is_file()
    }
    assert first.features.keys() >= files - set(BROKEN) - keys(ADDED)
    assert len(first.features) == SOUND
    assert first.embeddings == {key: etag for key, (etag, _) in first.features.items()}


def test_the_summary_says_what_was_done(first: Ran) -> None:
    summary = first.summary
    assert summary["objects"] == {
        "create": SOUND + len(BROKEN), "update": 0, "delete": 0, "unchanged": 0, "quarantined": 0, "pending": 0,
        "ignored": 0,
    }  # fmt: skip
    assert summary["features"] == SOUND
    assert summary["quarantine"] == {reason: list(BROKEN.values()).count(reason) for reason in sorted(BROKEN.values())}
    assert 0 < summary["wall_seconds"] <= first.seconds
    featurize = summary["featurize"]
    assert featurize["images"] == SOUND + len(BROKEN)
    assert featurize["images_per_second"] > 0
    assert {"get", "decode", "infer"} <= set(featurize["seconds"])
    assert all(seconds >= 0 for seconds in featurize["seconds"].values())
    assert summary["model_id"].startswith("efficientnet-lite0-")
    assert summary["pca"]["action"] == "fit"
    assert summary["pca"]["n"] == KINDS * TRAIN
    assert 1 <= summary["pca"]["k"] < summary["pca"]["n"]
    assert 0.9 < summary["pca"]["explained_variance"] <= 1
    assert summary["pca"]["pca_id"]
    assert all(0 <= summary["probe"][name] <= 1 for name in ("raw", "embedded"))
    assert summary["publication_id"]
    assert summary["gates"]
    for gate in summary["gates"]:
        assert set(gate) == {"name", "severity", "passed", "value", "threshold"}
        assert gate["severity"] in ("required", "warn")
        assert gate["passed"] or gate["severity"] == "warn"


def test_a_run_leaves_no_secret(first: Ran, installation: Installation) -> None:
    """Airflow's database with XCom, the log with the lines of drivers, run documents, tables, report."""
    database = rows(installation.data / "airflow" / "airflow.db")
    assert b"publication_id" in database["xcom"]
    left = files(installation.data.parent, "photos/*", "data/s3/*", "data/s3.*", "data/airflow/airflow.db*")
    assert any(b"tasks run on processes" in left[name] for name in left if fnmatch(name, "data/logs/run-*.log"))
    assert {"report.html", "summary.json", "data/catalog.db"} <= left.keys()
    with running_stack(installation.data) as stack:
        assert_none((stack.secret_key, TOKEN), {**database, **left, "output": first.out})


def test_the_summary_is_shown_to_the_person(first: Ran) -> None:
    for shown in (
        str(SOUND),
        first.summary["model_id"],
        first.summary["publication_id"],
        first.summary["pca"]["pca_id"],
    ):
        assert shown in first.out
    assert "summary.json" in first.out


def test_the_summary_opens_the_published_tables(first: Ran, installation: Installation) -> None:
    catalog = first.summary["catalog"]
    assert catalog["uri"] == catalog["properties"]["uri"]
    assert catalog["warehouse"] == catalog["properties"]["warehouse"]
    published = installation.table(catalog, "publications")
    assert first.summary["publication_id"] in {row["publication_id"] for row in published}
    models = {row["pca_id"]: row for row in installation.table(catalog, "pca_models")}
    card = models[first.summary["pca"]["pca_id"]]
    assert (card["n"], card["k"]) == (first.summary["pca"]["n"], first.summary["pca"]["k"])


def test_neither_the_first_run_nor_one_that_finds_nothing_to_do_starts_a_jvm(first: Ran, second: Ran) -> None:
    assert second.summary["objects"] == {
        "create": 0, "update": 0, "delete": 0, "unchanged": SOUND, "quarantined": len(BROKEN), "pending": 0,
        "ignored": 0,
    }  # fmt: skip
    assert first.jvms == first.summary["jvm_started"] == 0
    assert second.jvms == second.summary["jvm_started"] == 0
    assert "nothing to do" in second.out.lower()
    assert second.summary["featurize"]["images"] == 0
    assert second.summary["pca"]["action"] == "none"
    assert second.features == first.features
    for unchanged in ("publication_id", "features", "quarantine", "model_id", "probe", "gates", "catalog"):
        assert second.summary[unchanged] == first.summary[unchanged], unchanged


@pytest.mark.slow
def test_only_what_changed_is_featurized(second: Ran, third: Ran) -> None:
    assert third.summary["objects"] == {
        "create": 4, "update": 2, "delete": 1, "unchanged": SOUND - 3, "quarantined": len(BROKEN), "pending": 0,
        "ignored": 0,
    }  # fmt: skip
    assert third.jvms >= third.summary["jvm_started"] > 0  # rows of keys are deleted by Spark
    assert third.summary["featurize"]["images"] == 6
    assert third.summary["features"] == SOUND + 4 - 1
    changed = {key for key, row in third.features.items() if second.features.get(key) != row}
    assert changed == keys([*ADDED, *REPLACED])
    assert second.features.keys() - third.features.keys() == keys([DELETED])
    assert "so their rows leave the tables: 1\n" in third.out
    assert {third.features[key][1] for key in changed} == {third.summary["run_id"]}
    assert all(third.features[key][0] != second.features[key][0] for key in keys(REPLACED))


@pytest.mark.slow
def test_a_few_new_photos_are_projected_on_the_pca_that_is_there(first: Ran, third: Ran) -> None:
    assert third.summary["pca"]["action"] == "project"
    assert third.summary["pca"]["pca_id"] == first.summary["pca"]["pca_id"]
    assert third.embeddings == {key: etag for key, (etag, _) in third.features.items()}
    assert third.summary["publication_id"] != first.summary["publication_id"]


@pytest.fixture
def published(installation: Installation, first: Ran) -> Iterator[list[dict[str, Any]]]:
    """What is published before a test; it must be so afterwards."""
    before = installation.table(first.summary["catalog"], "publications")
    yield before
    assert installation.table(first.summary["catalog"], "publications") == before


def refused(done: Done, summary: Path) -> str:
    """What the person reads last, after checking that it is a refusal: no success, no summary, no stack trace."""
    assert done.code not in (ExitCode.OK, ExitCode.UNEXPECTED), f"{done.out}\n{done.err}"
    assert not summary.exists()
    assert "Traceback" not in done.out + done.err
    assert done.jvms == 0
    assert done.err.strip()
    return done.err.strip()


def test_a_folder_that_does_not_exist(
    installation: Installation, published: list[dict[str, Any]], tmp_path: Path
) -> None:
    missing, summary = tmp_path / "nowhere", tmp_path / "summary.json"
    said = refused(command(installation.data, missing, summary), summary)
    assert str(missing) in said
    assert "no such folder" in said
    assert "IMAGES" in said


def test_a_folder_without_photos_does_not_empty_the_bucket(
    installation: Installation, published: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder, summary = tmp_path / "empty", tmp_path / "summary.json"
    folder.mkdir()
    (folder / "notes.txt").write_text("no photo")
    said = refused(command(installation.data, folder, summary), summary)
    assert str(folder) in said
    assert "no photos" in said
    assert "1 other file" in said
    assert ".jpg" in said
    with running_stack(installation.data) as stack:
        assert stack.client().list_objects_v2(Bucket="fruits")["KeyCount"] >= SOUND


def test_settings_that_are_wrong_are_named_at_once(
    installation: Installation, published: list[dict[str, Any]], tmp_path: Path
) -> None:
    wrong = {"FRUITS_KEY_PATTERN": "(?P<label>[", "FRUITS_N_COMPONENTS": "many", "FRUITS_MAX_PHOTO_BYTES": "-1"}
    summary = tmp_path / "summary.json"
    said = refused(command(installation.data, installation.photos, summary, **wrong), summary)
    expected = [*wrong, "regular expression", "(?P<label>[", "'many'", "'-1'"]
    assert [part for part in expected if part not in said] == []


def test_prepare_says_so_when_the_bucket_is_not_there(make_settings: Callable[..., Settings]) -> None:
    with pytest.raises(
        FruitsError, match=r"bucket 'no-such-bucket' does not exist there; create it, or correct FRUITS_BUCKET"
    ):
        prepare(make_settings(bucket="no-such-bucket"), RunRequest(prefix=""))


@pytest.mark.parametrize(
    ("access_key", "secret_key", "expected"),
    [("nobody", "knows-this-key", "AWS_ACCESS_KEY_ID"), (None, "another-secret", "AWS_SECRET_ACCESS_KEY")],
)
def test_prepare_says_so_when_the_credentials_are_wrong(
    access_key: str | None,
    secret_key: str,
    expected: str,
    stack: Stack,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fruits import stores

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key or stack.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)
    stores._credentials.cache_clear()
    try:
        with pytest.raises(FruitsError, match=expected) as raised:
            prepare(settings, RunRequest(prefix=""))
    finally:
        stores._credentials.cache_clear()
    assert str(settings.s3_endpoint) in str(raised.value)
    assert secret_key not in str(raised.value)


def test_prepare_says_so_when_there_is_no_jobs_environment(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(FruitsError, match=r"no Python at .*make setup.*FRUITS_JOBS_ENV"):
        prepare(settings.model_copy(update={"jobs_env": tmp_path}), RunRequest(prefix=""))


def test_a_prefix_with_nothing_under_it(
    installation: Installation, first: Ran, published: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fruits import stores

    with running_stack(installation.data) as stack:
        for name, value in stack.environment.items():
            monkeypatch.setenv(name, value)
        stores._credentials.cache_clear()
        try:
            settings = Settings.load(prefix="Trainnig/", namespace="nothing_yet")
            request = RunRequest(prefix="Trainnig/")
            prepare(settings, request)
            with pytest.raises(
                FruitsError, match=r"s3://fruits/Trainnig/: no objects there; upload photos .* correct the prefix"
            ):
                plan_run(settings, request, "a run")
        finally:
            stores._credentials.cache_clear()


def test_a_message_of_several_lines_reaches_the_person_whole() -> None:
    stamp = "2026-11-22T18:47:33.227203Z [error    ]"
    log = f"""{stamp} Task failed with exception [task] loc=task_runner.py:1
Traceback (most recent call last):
  File "prepare.py", line 1, in prepare
fruits.errors.FruitsError: Settings are not usable:
  FRUITS_BUCKET is not set.

The above exception was the direct cause of the following exception:

airflow.sdk.exceptions.AirflowFailException: Settings are not usable:
  FRUITS_BUCKET is not set.
  FRUITS_LAKE is not set.
{stamp} something else [task] loc=task_runner.py:2
of two lines
"""
    reader = LogReader()
    assert [reader.read(line) for line in log.splitlines(keepends=True)] == [None] * len(log.splitlines())
    assert reader.errors == ("Settings are not usable:\n  FRUITS_BUCKET is not set.\n  FRUITS_LAKE is not set.",)


def test_the_work_is_shown_while_it_goes_on(first: Ran) -> None:
    tasks = (
        "prepare", "wait_for_images", "uploads_settled", "wait_for_lease", "plan",
        "featurize", "pca", "validate", "publish",
    )  # fmt: skip
    assert re.findall(r"^> (\w+)$", first.out, re.MULTILINE) == list(tasks)
    assert f"plan: {SOUND + len(BROKEN)} create" in first.out
    gates = re.findall(r"^  gate (\w+) ", first.out, re.MULTILINE)
    assert sorted(gates) == sorted(gate["name"] for gate in first.summary["gates"])
