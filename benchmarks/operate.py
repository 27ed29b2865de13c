"""What operating costs, through a real Airflow on this machine: events, backfills, and runs that overlap.

    .venvs/airflow/bin/python benchmarks/operate.py --days 10 --photos 20

Starts the embedded stack with its UI in a folder of its own, and prints one line for each finding:

- backfill: a backfill of so many days, several runs at a time, and the same backfill again;
- failed: a backfill whose runs all fail, taken up by each of Airflow's reprocess behaviours;
- overlap: a backfill (backwards), a run by hand and one by an event, all started together;
- event: one photo into the bucket, and how long until it is published, task by task (--events times);
- backbone: the days of the backfill again under another backbone, and when readers get it (--backbone);
- full: whether the tables are those that one run over the final bucket makes.

Exit code 1 when any run is not green, or a table is not as it should be.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from fruits.lake.catalog import Lake
from fruits.lake.pca_tables import load_statistics
from fruits.lake.publication import current_base, publications
from fruits.run import DAG_ID
from fruits.settings import Settings
from local import ui
from local.airflow import migrate, run_dag
from local.api import AirflowAPI
from local.queue import EventQueue
from local.stack import Stack, environment_of, running_server
from sample_photos import LABELS, draw

DAG = f"dags/{DAG_ID}"
BACKFILLS = f"backfills?dag_id={DAG_ID}"
FIRST_DAY = date(2026, 3, 2)
SIZE = (100, 160)
SECONDS_A_RUN = 600
EQUAL = 1e-9  # relative, of statistics


def main() -> int:
    """Run the command; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the stack; a temporary one otherwise")
    parser.add_argument("--days", type=int, default=10, help="days of the backfill, 0 for none (%(default)s)")
    parser.add_argument("--photos", type=int, default=20, help="photos of each day (%(default)s)")
    parser.add_argument("--failed-days", type=int, default=2, help="days of one that fails, 0: none (%(default)s)")
    parser.add_argument("--overlap-days", type=int, default=3, help="days of one that overlaps, 0: none (%(default)s)")
    parser.add_argument("--events", type=int, default=1, help="photos whose publication is timed (%(default)s)")
    parser.add_argument("--backbone", help="a second backbone, such as MobileNetV2; none otherwise")
    parser.add_argument("--weights", default="imagenet", help="its weights: a path or a URI (%(default)s)")
    parser.add_argument("--settle", type=int, default=5, help="settle_seconds of the runs (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the findings to this file as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = (arguments.data or Path(folder)).resolve()
        try:
            ui.start(data)
            findings = measure(data, arguments)
        finally:
            ui.stop(data)
    if arguments.json:
        arguments.json.write_text(json.dumps(findings, indent=2))
    return 0 if findings["green"] and findings["complete"] and findings["equal"] else 1


def measure(data: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All scenarios, in order; returns what was found."""
    stack = running_server(data)
    if stack is None:
        raise SystemExit(f"the S3 server on {data} ended")
    with environment_of(stack):
        bench = Bench(data, stack, Settings.load(), arguments.settle)
        seeded = bench.seed()
        backfill = bench.backfill(arguments.days, arguments.photos) if arguments.days else None
        failed = bench.failed(arguments.failed_days) if arguments.failed_days else None
        overlap = bench.overlap(arguments.overlap_days, arguments.photos) if arguments.overlap_days else None
        events = [bench.event(number) for number in range(arguments.events)]
        chosen = {"backbone": arguments.backbone, "weights": arguments.weights} if arguments.backbone else {}
        backbone = bench.backbone(arguments.days, chosen) if chosen else None
        equal = bench.equals_a_full_run(chosen)
        runs = {**seeded, **bench.runs()}
    return {
        "green": set(runs.values()) == {"success"},
        "complete": (overlap is None or overlap["present"] == overlap["photos"])
        and (backfill is None or backfill["right"])
        and (failed is None or failed["present"] == {"none": 0, "failed": failed["photos"]})
        and (backbone is None or backbone["readers_switched_with_the_last"]),
        "runs": runs,
        "backfill": backfill,
        "failed": failed,
        "overlap": overlap,
        "events": events,
        "backbone": backbone,
        "equal": equal,
    }


@dataclass(frozen=True)
class Bench:
    """The running stack, its Airflow, and the scenarios."""

    data: Path
    stack: Stack
    settings: Settings
    settle: int

    def seed(self) -> dict[str, str]:
        """A first run over a few photos without a date: the backbone is built, and a PCA fitted."""
        self.put([f"Training/{LABELS[n % 4]}/seed-{n}.jpg" for n in range(12)])
        self.pause(False)
        runs = self.wait_for_runs(lambda runs: any(state == "success" for state in runs.values()))
        self.quiet()
        say("seed", f"{len(runs)} runs: {dict(Counter(runs.values()))}")
        return runs

    def backfill(self, days: int, photos: int) -> dict[str, Any]:
        """A backfill over days with photos, then the same once more; every photo must be in one run, its day's.

        Or in that of the hourly sweep, should one come between.
        """
        self.pause(True)
        keys = dated_keys(0, days, photos)
        fits_before = self.fits()
        self.put(keys)
        self.forget_events()
        start = time.monotonic()
        self.create_backfill(0, days, "--max-active-runs", "4")
        self.pause(False)
        self.wait_for_runs(lambda runs: sum(is_backfill(run) for run in runs) >= days and done(runs))
        seconds = round(time.monotonic() - start, 1)
        features = self.rows()
        own_day = sum(features[key]["run_id"] == day_run(key) for key in keys if key in features)
        swept = sum(features[key]["run_id"].startswith("scheduled__") for key in keys if key in features)
        fits = self.fits()
        before = self.sequence()
        self.create_backfill(0, days, "--reprocess-behavior", "completed")
        self.wait_for_runs(done, pause=10)
        again = self.sequence() - before
        say(
            "backfill",
            f"{days} days of {photos} photos in {seconds} s: {own_day} of {len(keys)} photos by their own day's run, "
            f"{swept} by a sweep, {fits - fits_before} refits; once more: {again} publications",
        )
        return {
            "seconds": seconds, "photos": len(keys), "by_their_own_day": own_day, "by_a_sweep": swept,
            "fits": fits, "publications_once_more": again,
            "right": own_day + swept == len(keys) and fits <= 1 + fits_before and again == 0,
        }  # fmt: skip

    def failed(self, days: int) -> dict[str, Any]:
        """A backfill red by its conf: `none` leaves its days out, `failed` does them, `completed` finds nothing."""
        self.pause(True)
        keys = dated_keys(200, days, 4)
        self.put(keys)
        self.forget_events()
        self.create_backfill(200, days, conf={"n_components": 1_000_000})
        self.pause(False)
        mine = {day_run(key) for key in keys}
        states: dict[str, Any] = {}
        present: dict[str, int] = {}
        for behavior in ("none", "failed"):
            self.wait_for_runs(done, pause=10)
            states[behavior] = {self.runs()[run] for run in mine}
            self.create_backfill(200, days, "--reprocess-behavior", behavior)
            self.wait_for_runs(done, pause=10)
            present[behavior] = len(self.rows().keys() & set(keys))
        before = self.sequence()
        check(states == {"none": {"failed"}, "failed": {"failed"}}, states)
        self.create_backfill(200, days, "--reprocess-behavior", "completed")
        self.wait_for_runs(done, pause=10)
        again = self.sequence() - before
        check(again == 0, f"{again} publications without a change")
        say(
            "failed",
            f"{days} red days of 4 photos; published by reprocess behaviour: {present}, `completed` none again",
        )
        return {"photos": len(keys), "present": present}

    def backbone(self, days: int, chosen: dict[str, str]) -> dict[str, Any]:
        """The backfill once more under another backbone, then a run by hand that takes what no day covers."""
        before, start = current_base(Lake.open(self.settings)).publication, time.monotonic()
        if days:
            self.create_backfill(0, days, "--reprocess-behavior", "completed", "--max-active-runs", "4", conf=chosen)
            self.wait_for_runs(done, pause=10)
        built = self.models_since(before.sequence)
        self.trigger(chosen)
        self.wait_for_runs(done, pause=15)
        after = current_base(Lake.open(self.settings)).publication
        self.trigger({})  # as a sweep: with the backbone of the settings, which readers have left
        self.wait_for_runs(done, pause=15)
        kept = current_base(Lake.open(self.settings)).publication == after
        switched = after.sequence == before.sequence + days + 1 and after.model_id != before.model_id
        switched = switched and built == [before.model_id] * days and kept
        seconds = round(time.monotonic() - start, 1)
        say(
            "backbone",
            f"{days} days and a run by hand in {seconds} s; readers had {dict(Counter(built))} in the publications "
            f"of the days, then {after.model_id}; a sweep {'keeps' if kept else 'CHANGES'} it",
        )
        return {"built": built, "after": after.model_id, "readers_switched_with_the_last": switched}

    def overlap(self, days: int, photos: int) -> dict[str, Any]:
        """A backfill backwards, a run by hand and an event together: all green, and every photo in the tables once."""
        keys = dated_keys(100, days, photos)
        start = time.monotonic()
        self.put(keys)  # each an event
        self.create_backfill(100, days, "--run-backwards", "--max-active-runs", "3")
        self.trigger({})
        runs = self.wait_for_runs(done, pause=15)
        seconds = round(time.monotonic() - start, 1)
        present = len(self.rows().keys() & set(keys))
        say("overlap", f"{len(runs)} runs so far, {dict(Counter(runs.values()))}; {present} of {len(keys)} photos")
        return {"seconds": seconds, "photos": len(keys), "present": present}

    def event(self, number: int) -> dict[str, Any]:
        """One photo into the bucket: seconds until it is published, and what each task took."""
        self.quiet()
        if number:
            time.sleep(60)  # after an event, the watcher of the queue rests for so long
        key = f"Training/Kiwi/event-{number}.jpg"
        start, began = time.monotonic(), datetime.now(UTC)
        self.put([key])
        while key not in self.rows():
            check(time.monotonic() - start < SECONDS_A_RUN, "the photo was not published")
            time.sleep(0.5)
        seconds = round(time.monotonic() - start, 1)
        runs = self.wait_for_runs(done)
        run = max(run for run in runs if run.startswith("asset_triggered"))
        tasks = self.airflow.ask(f"{DAG}/dagRuns/{quote(run)}/taskInstances")["task_instances"]
        names = ("scheduled_when", "queued_when", "start_date", "end_date")
        timeline = {
            task["task_id"]: [seconds_between(began, moment(task[name])) for name in names]
            for task in sorted(tasks, key=lambda task: str(task["end_date"]))
        }
        for task, moments in timeline.items():
            due, queued, start, end = moments
            say("event", f"  {task:16} due {due:5.1f} s, queued {queued:5.1f} s, runs {start:5.1f} s to {end:5.1f} s")
        say("event", f"one photo, from PUT to publication: {seconds} s")
        return {"runs": runs, "seconds": seconds, "timeline": timeline}

    def equals_a_full_run(self, chosen: Mapping[str, str]) -> bool:
        """Whether one run over the same bucket, in a lake of its own, makes the same rows and the same statistics."""
        other = replace(self.stack, data=self.data / "full")
        shutil.copytree(self.data / "lake" / "models", other.data / "lake" / "models", dirs_exist_ok=True)
        mine = self.state(self.settings)
        with environment_of(other):
            migrate(other)
            conf = {"settle_seconds": 0, **chosen}
            ended = run_dag(other, DAG_ID, conf, other.data / "run.log", lambda _: None)
            check(ended.succeeded, ended.errors)
            full = self.state(Settings.load())
        vectors = mine["rows"] == full["rows"]
        error = max(
            float(np.max(np.abs(mine[name] - full[name])) / np.max(np.abs(full[name]))) for name in ("mean", "scatter")
        )
        say("full", f"{len(full['rows'])} rows: {'equal' if vectors else 'NOT equal'}; statistics within {error:.1e}")
        return vectors and error <= EQUAL

    def state(self, settings: Settings) -> dict[str, Any]:
        """What must not depend on the history: features by key, and the running moments."""
        lake = Lake.open(settings)
        published = current_base(lake).publication
        moments = load_statistics(lake, published.snapshots["pca_statistics"], str(published.model_id), 1280)
        rows = {key: {**row, "run_id": None} for key, row in self.rows(settings, ("*",)).items()}
        return {"rows": rows, "mean": moments.mean, "scatter": moments.scatter}

    def rows(self, settings: Settings | None = None, columns: tuple[str, ...] = ("key", "run_id")) -> dict[str, Any]:
        """The published features of the backbone that readers use, by key."""
        lake = Lake.open(settings or self.settings)
        published = current_base(lake).publication
        table = lake.read("features", published.snapshots["features"], columns, model_id=str(published.model_id))
        rows = table.to_pylist()
        check(len({row["key"] for row in rows}) == len(rows), "a photo has two rows")
        return {row["key"]: row for row in rows}

    def fits(self) -> int:
        """How many PCA versions there are."""
        lake = Lake.open(self.settings)
        versions = lake.read("pca_models", current_base(lake).publication.snapshots["pca_models"], ("pca_id",))
        return int(versions.num_rows)

    def sequence(self) -> int:
        """The number of the current publication."""
        return current_base(Lake.open(self.settings)).publication.sequence

    def models_since(self, sequence: int) -> list[str | None]:
        """The backbone that readers had in each publication after one."""
        return [one.model_id for one in publications(Lake.open(self.settings)) if one.sequence > sequence]

    def put(self, keys: list[str]) -> None:
        """Draw photos and upload them."""
        client = self.stack.client()
        for number, key in enumerate(keys):
            label = key.split("/")[-2]
            body = draw(label, "Training", number + 1_000 * (len(key) % 7), size=SIZE)
            client.put_object(Bucket=self.settings.bucket, Key=key, Body=body)

    def create_backfill(self, first: int, days: int, *options: str, conf: Mapping[str, Any] | None = None) -> None:
        """``airflow backfill create``, as a person types it: once Airflow is done with the one before."""
        start, end = FIRST_DAY + timedelta(first), FIRST_DAY + timedelta(first + days - 1)
        dates = ("--from-date", f"{start}", "--to-date", f"{end}")
        given = json.dumps({"settle_seconds": self.settle, **(conf or {})})
        while any(not one["completed_at"] for one in self.airflow.ask(BACKFILLS)["backfills"]):
            time.sleep(1)
        command = ("backfill", "create", "--dag-id", DAG_ID, *dates, "--dag-run-conf", given, *options)
        check(ui.airflow_command(self.data, command) == 0, "airflow backfill create failed")

    def forget_events(self) -> None:
        """Let nothing that was uploaded so far wake the DAG."""
        time.sleep(15)  # from the S3 server over bridge and queue to Airflow
        queue = EventQueue.read(self.data)
        queue.client().purge_queue(QueueUrl=queue.url)
        gone = self.airflow.request(f"api/v2/{DAG}/assets/queuedEvents", "DELETE").status_code
        check(gone in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND), f"events are not forgotten: {gone}")

    def quiet(self) -> None:
        """Wait until no run is active, and none is about to be."""
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < 20:  # noqa: PLR2004 -- an event takes less to become a run
            if not done(self.runs()):
                quiet_since = time.monotonic()
            time.sleep(1)

    def wait_for_runs(self, ready: Callable[[Mapping[str, str]], bool], pause: float = 1) -> dict[str, str]:
        """The state of every run by id, once ``ready`` with them."""
        time.sleep(pause)
        deadline = time.monotonic() + 30 * SECONDS_A_RUN
        while not ready(runs := self.runs()):
            check(time.monotonic() < deadline, runs)
            time.sleep(1)
        return runs

    def runs(self) -> dict[str, str]:
        """The state of every run by id."""
        return {run["dag_run_id"]: run["state"] for run in self.airflow.ask(f"{DAG}/dagRuns?limit=500")["dag_runs"]}

    def trigger(self, conf: dict[str, Any]) -> None:
        """A run by hand."""
        body = {"logical_date": None, "conf": {"settle_seconds": self.settle, **conf}}
        self.airflow.ask(f"{DAG}/dagRuns", "POST", body)

    def pause(self, paused: bool) -> None:
        """Switch the DAG off or on."""
        self.airflow.ask(DAG, "PATCH", {"is_paused": paused})

    @cached_property
    def airflow(self) -> AirflowAPI:
        """Airflow's API, as the user that ``make ui`` prints."""
        return AirflowAPI.of(self.data)


def dated_keys(first: int, days: int, photos: int) -> list[str]:
    """Keys of photos of so many days, every fifth of them held out."""
    return [
        f"dt={FIRST_DAY + timedelta(first + day)}/{'Test' if n % 5 == 0 else 'Training'}/{LABELS[n % 6]}/{n}.jpg"
        for day in range(days)
        for n in range(photos)
    ]


def day_run(key: str) -> str:
    """The run of a backfill that covers a dated key: it is named by the end of its day."""
    end = date.fromisoformat(key.partition("/")[0].removeprefix("dt=")) + timedelta(1)
    return f"backfill__{end}T00:00:00+00:00"


def is_backfill(run_id: str) -> bool:
    """Whether a run is a backfill's."""
    return run_id.startswith("backfill__")


def done(runs: Mapping[str, str]) -> bool:
    """Whether no run is active any more."""
    return not {"queued", "running"} & set(runs.values())


def moment(text: str) -> datetime:
    """A time as Airflow's API tells it."""
    return datetime.fromisoformat(text)


def seconds_between(start: datetime, end: datetime) -> float:
    """Seconds from one moment to the other."""
    return round((end - start).total_seconds(), 1)


def check(truth: bool, message: object) -> None:
    """Stop when something is not as it must be."""
    if not truth:
        raise SystemExit(f"NOT as expected: {message}")


def say(what: str, line: str) -> None:
    """One finding, at once."""
    print(f"{what:9} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
