"""What each command answers, on a published lake."""

import csv
import json
import re
import sys
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from fruits.analysis.quality import ConfusedPair, Confusion
from fruits.cli import airflow, output
from fruits.cli.output import answer as print_answer
from fruits.cli.output import table
from fruits.errors import ExitCode, FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.classifier_tables import load_fitting_run
from fruits.lake.publication import publications
from fruits.run.documents import task_document
from fruits.run.lease import current_lease
from fruits.run.request import RunRequest, resolve_request
from fruits.run.state import run_key
from fruits.serve.mobile import PROTOTYPES
from fruits.steps.plan import plan_run
from fruits.stores import photo_store, write_bytes
from tests.runs import NO_OBJECTS, classified, planned, planned_maintenance, projected

pytestmark = pytest.mark.jobs


class TestStatus:
    def test_it_says_what_readers_see(self, answer, published):
        current = publications(Lake.open(published))[-1]
        said = answer("status", settings=published)["publication"]
        assert (said["publication_id"], said["sequence"]) == (current.publication_id, 2)
        assert (said["model_id"], said["pca_id"]) == (current.model_id, current.pca_id)
        assert said["quarantine"] == {"empty": 2}
        assert said["remaining"] == 4
        assert said["pca"]["n"] == 6
        assert 0.9 < said["pca"]["explained_variance"] <= 1

    def test_it_says_what_the_newest_runs_did(self, answer, published):
        said = answer("status", settings=published)
        assert [(run["run"], run["outcome"]) for run in said["runs"]] == [
            ("manual_2", "failed"),
            ("scheduled_1", "nothing to do"),
        ]
        newest = said["runs"][0]
        names = ("create", "update", "delete", "pending", "ignored")
        assert tuple(newest[name] for name in names) == (7, 1, 2, 3, 5)
        assert "the disk is full" in newest["error"]
        assert [run["run"] for run in answer("status", "--runs", 1, settings=published)["runs"]] == ["manual_2"]

    def test_dry_runs_maintenance_and_earlier_tries_are_told_apart(self, answer, new_lake, tmp_path):
        settings = new_lake(tmp_path)

        def leave(run_id, result=None, task="plan"):
            with task_document(settings, task, run_id, run_id) as document:
                if result:
                    document.record(result)
            time.sleep(0.02)

        def plan(run_id, *, dry_run=False, **changed):
            return planned(run_id, key=run_id, request=RunRequest(prefix="", dry_run=dry_run), **changed)

        leave("tried", plan("tried", counts={**NO_OBJECTS, "pending": 4}))
        with pytest.raises(FruitsError), task_document(settings, "validate", "tried", "tried"):
            raise FruitsError("a gate did not pass")
        leave("tried", plan("tried", work=False, counts={**NO_OBJECTS, "pending": 5}))
        leave("look", plan("look", dry_run=True, counts={**NO_OBJECTS, "pending": 99}))
        leave("planned", planned_maintenance("planned"), "plan_maintenance")
        leave("maintained", planned_maintenance("maintained"), "plan_maintenance")
        leave("maintained", task="maintain")
        with pytest.raises(FruitsError), task_document(settings, "plan_maintenance", "broken", "broken"):
            raise FruitsError("the catalog does not answer")
        said = answer("status", settings=settings)
        assert [(run["run"], run["outcome"], run["error"]) for run in said["runs"]] == [
            ("look", "dry run", None),
            ("tried", "nothing to do", None),
        ]
        said = answer("status", "--runs", 1, settings=settings)
        assert [run["run"] for run in said["runs"]] == ["look"]

    def test_it_lists_the_publications_that_can_be_rolled_back_to(self, answer, published):
        assert answer("status", settings=published)["publications"] is None
        said = answer("status", "--publications", settings=published)["publications"]
        assert [(one["sequence"], one["current"], one["can_roll_back"]) for one in said] == [
            (2, True, False),
            (1, False, True),
        ]

    def test_before_the_first_publication_it_says_that(self, fruits, folder_lake):
        Lake.open(folder_lake)
        Path(folder_lake.lake.removeprefix("file://")).mkdir(exist_ok=True)
        result = fruits("status", settings=folder_lake)
        assert result.exit_code == 0, result.output
        assert "nothing published yet" in result.stdout


class TestPlan:
    def test_it_counts_and_names_what_a_run_would_do(self, answer, published):
        plan = answer("plan", settings=published)
        assert plan["counts"] == {
            "create": 2, "update": 1, "delete": 13, "unchanged": 0, "quarantined": 0, "pending": 0, "ignored": 1,
        }  # fmt: skip
        assert plan["ignored"] == {"hidden": {"count": 1, "examples": ["train/kiwi/._new.jpg"]}}
        assert {entry["key"]: entry["rejection"] for entry in plan["keys"]["create"]} == {
            "stray.jpg": "key_pattern",
            "train/Kiwi/new.jpg": None,
        }
        assert [entry["key"] for entry in plan["keys"]["update"]] == ["train/Banana/0.jpg"]
        assert len(plan["keys"]["delete"]) == 10
        assert len(answer("plan", "--keys", "all", settings=published)["keys"]["delete"]) == 13
        assert answer("plan", "--keys", "0", settings=published)["keys"]["delete"] == []

    @pytest.mark.parametrize(
        ("options", "counts"),
        [
            (("--prefix", "train/Banana/"), {"create": 0, "update": 1, "delete": 5}),
            (("--key", "stray.jpg"), {"create": 1, "update": 0, "delete": 0}),
            (("--key", "stray.jpg", "--key", "train/Kiwi/new.jpg"), {"create": 2, "update": 0}),
            (("--limit", "1"), {"create": 1, "update": 0, "delete": 13, "pending": 2}),
            (("--backbone", "MobileNetV2"), {"create": 3, "delete": 0}),
        ],
        ids=str,
    )
    def test_it_takes_the_params_of_the_dag(self, answer, published, options, counts):
        said = answer("plan", *options, settings=published)["counts"]
        assert {name: said[name] for name in counts} == counts

    def test_its_table_of_deletions_has_no_bytes(self, fruits, published):
        lines = [line.split() for line in fruits("plan", settings=published).stdout.splitlines()]
        assert ["create", "bytes", "label"] in lines
        assert ["delete", "label"] in lines

    def test_it_names_what_is_ignored_with_the_rule_and_what_to_do(self, fruits, published):
        text = " ".join(fruits("plan", settings=published).stdout.split())
        assert "ignored as hidden 1: train/kiwi/._new.jpg. Hidden files and folders" in text

    def test_it_is_the_plan_that_the_dag_would_make(self, answer, new_lake, tmp_path):
        settings = new_lake(tmp_path)
        write_bytes(photo_store(settings), "train/Kiwi/9.jpg", b"x")
        said = answer("plan", "--keys", "all", settings=settings)
        request = resolve_request({"dry_run": True}, settings)
        planned = plan_run(settings, request, "manual__1")
        assert {name: getattr(planned, name) for name in ("counts", "work", "other_work", "remaining", "model_id")} == {
            name: said[name] for name in ("counts", "work", "other_work", "remaining", "model_id")
        }

    def test_keys_are_whole_when_the_output_is_piped(self, fruits, published):
        result = fruits("plan", "--keys", "all", settings=published, env={"COLUMNS": "20"})
        listed = {line.split("  ")[0] for line in result.stdout.splitlines()}
        assert {"train/Banana/0.jpg", "train/Kiwi/new.jpg", "stray.jpg"} <= listed

    def test_a_prefix_without_photos_is_refused_as_a_run_would(self, fruits, published):
        result = fruits("plan", "--prefix", "Trainnig/", settings=published)
        assert result.exit_code == ExitCode.BAD_INPUT
        assert "/Trainnig/: no objects there; upload photos as" in result.stderr

    def test_another_buckets_lake_is_refused(self, fruits, published, bucket):
        result = fruits("plan", settings=published.model_copy(update={"bucket": bucket}))
        assert result.exit_code == ExitCode.BAD_INPUT
        assert f"holds the photos of s3://{published.bucket}/" in result.stderr


class TestIdentify:
    def test_each_photo_has_labels_and_nearest_photos_and_a_bad_file_a_reason(self, fruits, published, tmp_path):
        Image.new("RGB", (64, 64), "yellow").save(tmp_path / "photo.png")
        (tmp_path / "no.jpg").write_text("hello")
        paths = [tmp_path / name for name in ("photo.png", "no.jpg", "absent.jpg")]
        result = fruits("identify", *paths, tmp_path, "--nearest", 2, "--json", settings=published)
        assert result.exit_code == ExitCode.BAD_INPUT, result.output
        good, *bad = json.loads(result.stdout)["photos"]
        assert {one["label"] for one in good["labels"]} == {"Banana", "Kiwi"}
        assert (good["known"], good["candidates"]) in ((False, []), (True, [one["label"] for one in good["labels"]]))
        assert sum(one["confidence"] for one in good["labels"]) == pytest.approx(1)
        assert [one["key"].split("/")[0] for one in good["nearest"]] == ["train", "train"]
        assert [re.split("[: ]", one["error"])[0] for one in bad] == ["not_an_image", "cannot", "a"]
        result = fruits("identify", paths[0], settings=published)
        assert result.exit_code == 0, result.output
        assert good["nearest"][0]["key"] in result.stdout


class TestIndex:
    def test_few_photos_need_no_index(self, fruits, answer, published, tmp_path):
        settings = published.model_copy(update={"index_folder": tmp_path / "index"})
        said = answer("index", settings=settings)
        assert said["publication_id"] == publications(Lake.open(published))[-1].publication_id
        assert (said["rows"], said["indexed_rows"], said["segments"], said["bytes"]) == (6, 0, 0, 0)
        assert Path(said["folder"]).parent == tmp_path / "index"
        result = fruits("index", settings=settings)
        assert "6 are compared one by one" in result.stdout

    def test_a_folder_that_cannot_be_written_is_named(self, fruits, published, tmp_path):
        (tmp_path / "index").write_text("a file")
        result = fruits("index", settings=published.model_copy(update={"index_folder": tmp_path / "index"}))
        assert result.exit_code == ExitCode.BAD_INPUT
        assert "FRUITS_INDEX_FOLDER" in result.stderr


class TestExport:
    @pytest.mark.parametrize(("name", "option"), [("out.csv", ()), ("out.dat", ("--format", "csv"))])
    def test_the_format_is_asked_for_or_that_of_the_file(self, answer, published, tmp_path, name, option):
        done = answer("export", "embeddings", "-o", tmp_path / name, *option, settings=published)
        rows = list(csv.DictReader((tmp_path / name).open()))
        assert done["rows"] == len(rows) > 0
        assert done["bytes"] == (tmp_path / name).stat().st_size
        assert {row["key"].split("/")[1] for row in rows} == {"Banana", "Kiwi"}

    @pytest.mark.parametrize(("kind", "option"), [("parquet", ()), ("csv", ("--format", "csv"))])
    def test_a_dataset_is_a_folder_of_parquet_files_unless_asked_otherwise(
        self, answer, published, tmp_path, kind, option
    ):
        done = answer("export", "dataset", "-o", tmp_path / "d", "--embeddings", *option, settings=published)
        assert {path.suffix for path in (tmp_path / "d").iterdir()} == {".md", f".{kind}"}
        assert done["bytes"] == sum(path.stat().st_size for path in (tmp_path / "d").iterdir())
        assert (done["table"], done["format"]) == ("dataset", kind)
        assert done["rows"] == answer("status", settings=published)["publication"]["features"]

    def test_a_file_is_replaced_only_when_asked_to(self, fruits, published, tmp_path):
        (tmp_path / "a.csv").write_text("mine")
        arguments = ("export", "quarantine", "-o", tmp_path / "a.csv")
        assert fruits(*arguments, settings=published).exit_code == ExitCode.BAD_INPUT
        assert (tmp_path / "a.csv").read_text() == "mine"
        assert fruits(*arguments, "--overwrite", settings=published).exit_code == 0
        assert "empty" in (tmp_path / "a.csv").read_text()

    def test_the_engine_is_one_file_that_names_its_versions(self, fruits, answer, published, tmp_path):
        done = answer("export", "model", "-o", tmp_path / "fruits.tflite", "--prototypes", 2, settings=published)
        assert done["bytes"] == (tmp_path / "fruits.tflite").stat().st_size
        assert (done["labels"], done["prototypes"]) == (["Banana", "Kiwi"], 2)
        with zipfile.ZipFile(done["path"]) as files:
            assert files.read("labels.txt") == b"Banana\nKiwi\n"
        again = fruits("export", "model", "-o", tmp_path / "fruits.tflite", "--overwrite", settings=published)
        assert again.exit_code == 0, again.output
        assert f"2 labels, {PROTOTYPES} prototypes of each" in again.stdout
        for name in ("publication_id", "classifier_id", "model_id", "pca_id"):
            assert done[name] in again.stdout


class TestReport:
    @pytest.mark.parametrize(
        ("run", "holds"), [((), "pub-000002"), (("manual_2",), "the disk is full"), (("manual_2",), "manual__2")]
    )
    def test_it_writes_one_page_of_a_run_or_of_what_readers_see(self, answer, published, tmp_path, run, holds):
        done = answer("report", *run, "-o", tmp_path / "a.html", settings=published)
        page = (tmp_path / "a.html").read_text()
        assert done["bytes"] == len(page.encode())
        assert page.lower().startswith("<!doctype html>")
        assert holds in page

    def test_a_run_goes_by_its_airflow_id_too(self, answer, new_lake, tmp_path):
        settings, run_id = new_lake(tmp_path), "manual__2026-11-22T09:30:00+00:00"
        with task_document(settings, "plan", run_key(run_id), run_id) as document:
            document.record(planned(run_id, work=False))
        done = answer("report", run_id, "-o", tmp_path / "a.html", settings=settings)
        assert done["run"] == run_key(run_id)
        assert run_id in (tmp_path / "a.html").read_text()


class TestModels:
    def test_it_says_what_each_backbone_is_and_has(self, answer, published):
        current = publications(Lake.open(published))[-1]
        (backbone,) = answer("models", settings=published)["backbones"]
        assert (backbone["model_id"], backbone["current"], backbone["features"]) == (current.model_id, True, 12)
        assert backbone["card"]["feature_width"] == 1280
        assert "Apache-2.0" in backbone["card"]["licence"]
        assert [one["n"] for one in backbone["pca_versions"]] == [6, 6]
        assert [one["pca_id"] for one in backbone["pca_versions"] if one["current"]] == [current.pca_id]

    def test_it_shows_what_the_classifier_confuses_while_the_documents_of_its_run_are_there(
        self, answer, fruits, new_lake, tmp_path
    ):
        settings = new_lake(tmp_path)
        lake = Lake.open(settings)
        current = publications(lake)[-1]
        assert [one["classifier"]["confused"] for one in answer("models", settings=settings)["backbones"]] == [[]]
        pair = ConfusedPair("Kiwi", "Banana", 3, ("train/Kiwi/4.jpg",))
        run_id = load_fitting_run(lake, current)
        with task_document(settings, "pca", run_key(run_id), run_id) as document:
            document.record(projected(classified=classified(current.classifier_id, Confusion((pair,), {}))))
        (backbone,) = answer("models", settings=settings)["backbones"]
        shown = {"label": "Kiwi", "likeliest": "Banana", "n": 3, "keys": ["train/Kiwi/4.jpg"]}
        assert backbone["classifier"]["confused"] == [shown]
        assert "Kiwi Banana 3 train/Kiwi/4.jpg" in " ".join(fruits("models", settings=settings).stdout.split())
        with task_document(settings, "pca", run_key(run_id), run_id) as document:
            document.record(projected(classified=classified("lda-other", Confusion((pair,), {}))))
        (backbone,) = answer("models", settings=settings)["backbones"]
        assert backbone["classifier"]["confused"] == [], "those of another classifier"

    def test_a_damaged_card_spoils_only_its_own_line(self, answer, new_lake, tmp_path):
        settings = new_lake(tmp_path)
        (tmp_path / "lake" / "models" / "other-123").mkdir()
        (tmp_path / "lake" / "models" / "other-123" / "card.json").write_text("{}")
        sound, damaged = answer("models", settings=settings)["backbones"]
        assert (sound["error"], damaged["card"]) == (None, None)
        assert "can't read the card" in damaged["error"]


class TestQuarantine:
    def test_it_lists_objects_with_reason_and_detail(self, answer, published):
        said = answer("quarantine", "list", "--reason", "empty", "--prefix", "train/Kiwi/e", settings=published)
        assert [(one["key"], one["reason"]) for one in said["objects"]] == [("train/Kiwi/empty.jpg", "empty")]
        assert said["reasons"] == {"empty": 2}

    def test_a_key_cannot_act_on_the_terminal(self, fruits, published):
        result = fruits("quarantine", "list", settings=published)
        assert "\x1b" not in result.stdout
        assert "train/Kiwi/\\x1b[31mempty.jpg" in result.stdout

    @pytest.mark.parametrize(
        ("arguments", "keys"),
        [
            ((), []),
            (("train/Kiwi/empty.jpg",), ["train/Kiwi/empty.jpg"]),
            (("--reason", "empty"), ["train/Kiwi/\x1b[31mempty.jpg", "train/Kiwi/empty.jpg"]),
        ],
        ids=str,
    )
    def test_retry_triggers_the_dag_for_the_objects_asked_for(
        self, answer, published, tmp_path, monkeypatch, arguments, keys
    ):
        calls = fake_airflow(tmp_path, monkeypatch, paused="False")
        done = answer("quarantine", "retry", *arguments, settings=published)
        assert done == {"run_id": "manual__7", "conf": {"retry_quarantined": True, "keys": keys}}
        (triggered,) = [call for call in calls() if call[:2] == ["dags", "trigger"]]
        assert triggered[2:4] == ["fruit_features", "--conf"]
        assert json.loads(triggered[4]) == done["conf"]

    def test_a_paused_dag_is_not_triggered(self, fruits, published, tmp_path, monkeypatch):
        calls = fake_airflow(tmp_path, monkeypatch, paused="True")
        result = fruits("quarantine", "retry", settings=published)
        assert result.exit_code == ExitCode.BAD_INPUT
        assert "DAG fruit_features is paused" in result.stderr
        assert not [call for call in calls() if call[:2] == ["dags", "trigger"]]

    def test_without_airflow_it_says_what_is_missing(self, fruits, published, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "prefix", str(tmp_path / "jobs"))
        monkeypatch.setenv("PATH", str(tmp_path))
        result = fruits("quarantine", "retry", settings=published)
        assert result.exit_code == ExitCode.BAD_INPUT
        assert "Airflow: no program at" in result.stderr

    def test_what_airflow_says_when_it_fails_is_shown(self, fruits, published, tmp_path, monkeypatch):
        fake_airflow(tmp_path, monkeypatch, paused="False", fails="DAG: fruit_features does not exist")
        result = fruits("quarantine", "retry", settings=published)
        assert result.exit_code == ExitCode.BAD_INPUT
        assert "airflow dags details: DAG: fruit_features does not exist" in result.stderr

    def test_objects_that_no_run_would_read_are_not_retried(self):
        from fruits.cli.quarantine import conf_of_retry

        found = {"objects": [{"key": "stray.jpg", "reason": "key_pattern"}]}
        with pytest.raises(FruitsError, match="FRUITS_KEY_PATTERN"):
            conf_of_retry(found, (), everything=True)

    def test_more_keys_than_a_run_can_be_told_are_refused(self):
        from fruits.cli.quarantine import conf_of_retry

        found = {"objects": [{"key": f"train/Kiwi/{n:0100}.jpg", "reason": "empty"} for n in range(1_000)]}
        with pytest.raises(FruitsError, match="1,000 keys are too many"):
            conf_of_retry(found, (), everything=False)
        assert conf_of_retry(found, (), everything=True)["keys"] == []


class TestStale:
    """`fruits doctor --stale`: what a cron job goes by is the exit code."""

    def test_a_lake_that_runs_keep_up_to_date_is_fine(self, answer, published, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "prefix", str(tmp_path / "jobs"))
        monkeypatch.setenv("PATH", str(tmp_path))
        found = answer("doctor", "--stale", settings=published)
        assert (found["ok"], [one["state"] for one in found["checks"]]) == (True, ["ok"])

    def test_a_paused_dag_is_found(self, fruits, published, tmp_path, monkeypatch):
        fake_airflow(tmp_path, monkeypatch, paused="True")
        result = fruits("doctor", "--stale", "--json", settings=published)
        assert result.exit_code == ExitCode.BAD_INPUT
        assert [one["check"] for one in json.loads(result.stdout)["checks"]] == ["DAG"]

    def test_an_airflow_that_does_not_answer_is_found(self, fruits, published, tmp_path, monkeypatch):
        fake_airflow(tmp_path, monkeypatch, paused="False", fails="no database")
        result = fruits("doctor", "--stale", "--json", settings=published)
        assert result.exit_code == ExitCode.BAD_INPUT
        (finding,) = json.loads(result.stdout)["checks"]
        assert (finding["check"], finding["found"]) == ("airflow", "airflow dags details: no database")

    def test_airflows_answers_become_a_schedule(self):
        answers = {
            "details": [{"is_paused": "False", "next_dagrun_logical_date": "2026-11-22 11:05:00+00:00"}],
            "list-runs": [{"run_id": "backfill__1", "state": "queued"}],
            "list-import-errors": [{"filepath": "/dags/fruit_features.py", "error": "Traceback\n  wrong setting\n"}],
        }

        class Fake:
            def ask(self, _, command, *arguments):
                return [] if "running" in arguments else answers[command]

        schedule = airflow.schedule_of(Fake())
        assert (schedule.paused, schedule.queued, schedule.running) == (False, 1, 0)
        assert schedule.next_sweep == datetime(2026, 11, 22, 11, 5, tzinfo=UTC)
        assert schedule.import_errors == {"fruit_features.py": "wrong setting"}


def fake_airflow(tmp_path: Path, monkeypatch, *, paused: str, fails: str = ""):
    """An `airflow` that answers as Airflow's does, after a line of its log; returns what reads the calls of it."""
    program, log = tmp_path / "airflow" / "bin" / "airflow", tmp_path / "calls"
    program.parent.mkdir(parents=True)
    program.write_text(f"""#!/bin/sh
for argument; do printf '%s\\0' "$argument"; done >> '{log}'; echo >> '{log}'
echo '[warning] something about graphviz'
if [ -n '{fails}' ]; then echo '{fails}' >&2; exit 1; fi
case "$2" in
    details) echo '[{{"dag_id": "fruit_features", "is_paused": "{paused}"}}]' ;;
    trigger) echo '[{{"dag_id": "fruit_features", "dag_run_id": "manual__7"}}]' ;;
esac
""")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "jobs"))
    return lambda: [line.split("\0")[:-1] for line in log.read_text().splitlines()]


class TestRollback:
    def test_it_asks_and_then_readers_have_the_older_publication(self, fruits, answer, new_lake, tmp_path):
        settings = new_lake(tmp_path)
        refused = fruits("rollback", "1", settings=settings, input="n\n")
        assert refused.exit_code == ExitCode.BAD_INPUT
        assert "Roll back from pub-000002-" in refused.stderr
        assert len(publications(Lake.open(settings))) == 2
        done = fruits("rollback", "1", settings=settings, input="y\n")
        assert done.exit_code == 0, done.output
        assert "To stay here: `fruits pin --why ...`" in done.stdout
        first, _, third = publications(Lake.open(settings))
        assert third.snapshots == first.snapshots
        assert answer("models", settings=settings)["backbones"][0]["features"] == 6
        current = fruits("rollback", "3", settings=settings, input="")
        assert current.exit_code == 0, "there is nothing to be asked"
        assert "Nothing to do" in current.stdout

    def test_as_json_it_says_what_it_did_and_a_second_time_that_there_was_nothing_to_do(
        self, answer, new_lake, tmp_path
    ):
        settings = new_lake(tmp_path)
        first, second = publications(Lake.open(settings))
        done = answer("rollback", first.publication_id, "--yes", settings=settings)
        assert (done["before"], done["rolled_back_to"]) == (second.publication_id, first.publication_id)
        assert (done["changed"], done["sequence"]) == (True, 3)
        again = answer("rollback", "1", "--yes", settings=settings)
        assert (again["changed"], again["publication_id"]) == (False, done["publication_id"])


class TestPin:
    def test_a_rollback_may_stay_and_runs_end_without_work_until_it_is_lifted(self, fruits, answer, new_lake, tmp_path):
        settings = new_lake(tmp_path)
        write_bytes(photo_store(settings), "train/Kiwi/9.jpg", b"x")
        done = fruits("rollback", "1", "--yes", "--pin", "--why", "a bad camera", settings=settings)
        assert done.exit_code == 0, done.output
        assert re.search("pinned readers to pub-000001-.*: a bad camera. `fruits unpin` lets runs", done.stdout)

        planned = plan_run(settings, resolve_request({}, settings), "scheduled__1")
        assert (planned.work, planned.counts["create"]) == (False, 1)
        assert planned.pinned.endswith(": a bad camera")
        assert current_lease(settings) is None
        status = answer("status", settings=settings)
        assert status["pin"] == planned.pinned == answer("plan", settings=settings)["pin"]
        assert status["runs"][0]["outcome"] == "pinned"
        assert planned.pinned in fruits("status", settings=settings).stdout
        page = tmp_path / "report.html"
        for run in ((), ("scheduled__1",)):
            answer("report", *run, "-o", page, settings=settings)
            assert ": a bad camera" in page.read_text()

        again = fruits("rollback", "2", "--yes", settings=settings)
        assert "`fruits unpin` first, or add --pin --why" in again.stderr
        assert answer("unpin", settings=settings) == {"changed": True}
        assert answer("unpin", settings=settings) == {"changed": False}
        assert plan_run(settings, resolve_request({}, settings), "scheduled__2").work

    def test_readers_stay_on_what_they_see(self, fruits, answer, new_lake, tmp_path):
        settings = new_lake(tmp_path)
        assert answer("pin", "2", "--why", "holidays", settings=settings)["pin"]["sequence"] == 2
        assert not plan_run(settings, resolve_request({}, settings), "scheduled__1").work
        assert "Runs end without work from now on" in fruits("pin", "--why", "more holidays", settings=settings).stdout
        for said in ("Readers follow the runs again.", "Nothing to do: there is no pin."):
            assert said in fruits("unpin", settings=settings).stdout


class TestMovePhotos:
    def test_another_prefix_is_refused_until_a_person_says_that_it_is_meant(self, fruits, answer, new_lake, tmp_path):
        settings = new_lake(tmp_path)
        write_bytes(photo_store(settings), "train/Kiwi/9.jpg", b"x")
        elsewhere = settings.model_copy(update={"prefix": "train/"})
        request = resolve_request({}, elsewhere)
        with pytest.raises(FruitsError, match="holds the photos of .*`fruits move-photos`"):
            plan_run(elsewhere, request, "scheduled__1")
        assert "`fruits move-photos`" in fruits("plan", settings=elsewhere).stderr
        why = ("--why", "only train is ours")
        refused = fruits("move-photos", *why, settings=elsewhere, input="n\n")
        assert (refused.exit_code, "12 features" in refused.stderr) == (ExitCode.BAD_INPUT, True)

        done = answer("move-photos", *why, "--yes", settings=elsewhere)
        assert (done["changed"], done["now"]) == (True, f"s3://{settings.bucket}/train/ on this machine")
        assert plan_run(elsewhere, request, "scheduled__2").work
        with pytest.raises(FruitsError, match="holds the photos of .*/train/ on this machine, not of"):
            plan_run(settings, resolve_request({"dry_run": True}, settings), "manual__3")
        again = fruits("move-photos", *why, settings=elsewhere, input="")
        assert "Nothing to do: the lake already holds the photos of" in again.stdout


class TestOutput:
    def test_a_number_that_is_none_is_null(self, capsys):
        document = {"a": float("nan"), "b": [float("inf"), 1.5, {"c": -float("inf")}], "d": ("x", None, True)}
        print_answer(document, lambda it: [], as_json=True)
        found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        assert found == {"a": None, "b": [None, 1.5, {"c": None}], "d": ["x", None, True]}

    def test_a_line_that_is_no_table_cannot_act_on_the_terminal_either(self, capsys):
        """Such as a run's error, in which object keys stand."""
        document = {"error": "\x1b[31mKiwi\r\x9b2J: mend\nthis"}
        print_answer(document, lambda it: [it["error"]], as_json=False)
        assert capsys.readouterr().out == "\\x1b[31mKiwi\\x0d\\x9b2J: mend\nthis\n"

    def test_a_narrow_terminal_wraps_a_key_and_cuts_nothing_off(self, monkeypatch, capsys):
        key = "train/Kiwi/" + "k" * 200
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "60")
        print_answer({"key": key}, lambda it: [table(("key", ">bytes"), [(it["key"], 12_345)])], as_json=False)
        shown = capsys.readouterr().out
        assert "".join(re.findall("k", shown.replace("key", ""))) == "k" * 200
        assert "12,345" in shown
        assert "…" not in shown

    @pytest.mark.parametrize(
        ("moment", "said"),
        [
            ("2026-11-22T09:29:30+00:00", "30 s ago"),
            ("2026-11-22T09:00:00+00:00", "30 min ago"),
            ("2026-11-21T09:30:00+00:00", "24 h ago"),
            ("2026-11-12T09:30:00+00:00", "10 d ago"),
            ("2026-11-22T09:30:05+00:00", "0 s ago"),
        ],
    )
    def test_an_age_is_told_in_a_unit_that_fits(self, moment, said):
        from datetime import datetime

        assert output.ago(moment, datetime.fromisoformat("2026-11-22T09:30:00+00:00")) == said
