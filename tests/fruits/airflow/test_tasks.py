"""What a task makes of its run, with fakes of Airflow's context: merged sweeps, conflicts, notes, metrics."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Variable
from airflow.sdk.api.datamodels._generated import DagRunType
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowRuntimeError,
    AirflowSkipException,
    ErrorType,
)
from airflow.sdk.execution_time.comms import ErrorResponse
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from fruits.airflow import metrics, notes, replan, tasks, watchdog
from fruits.airflow.errors import non_retryable
from fruits.airflow.jobs import reraise_job_error
from fruits.airflow.links import ReportLink
from fruits.airflow.replan import replan_on_conflict
from fruits.analysis.gates import Gate
from fruits.errors import ConflictError, FruitsError
from fruits.lake.publication import Publication
from fruits.run.documents import RunDocuments
from fruits.run.lease import note_waiting
from fruits.serve.watch import Freshness, Observation, Schedule
from fruits.settings import Settings
from tests.runs import document, featurized, planned, validated, write_documents

pytestmark = pytest.mark.airflow


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(lake=f"file://{tmp_path / 'lake'}", catalog_uri=f"sqlite:///{tmp_path}/c.db")


def woken_by(*payloads: dict[str, Any] | None) -> dict[str, Any]:
    """What the context of a run that asset events woke has besides; an event that a person posted has no payload."""
    extras = [{} if payload is None else {"from_trigger": True, "payload": payload} for payload in payloads]
    return {"triggering_asset_events": {"photos": [SimpleNamespace(extra=extra) for extra in extras]}}


KEPT = {"messages": 1, "keys": ["a"], "kept": "1.json"}
OF_AN_EARLIER_RELEASE = {"messages": 1, "keys": ["a"]}


@pytest.mark.parametrize(
    ("payloads", "mode"),
    [
        ([KEPT], "events"),
        ([KEPT, KEPT], "events"),
        ([KEPT, None], "reconcile"),
        ([None], "reconcile"),
        ([OF_AN_EARLIER_RELEASE], "reconcile"),
        ([], "reconcile"),
    ],
)
def test_a_run_looks_up_keys_when_those_of_all_its_events_are_kept(
    settings: Settings, payloads: list[dict[str, Any] | None], mode: str
) -> None:
    run = SimpleNamespace(run_type=DagRunType("asset_triggered"), data_interval_start=None, data_interval_end=None)
    context: Any = {"dag_run": run, "params": {}, **woken_by(*payloads)}
    assert tasks.requested(context, settings).mode == mode


def test_what_woke_a_run_does_not_matter_to_a_sweep_and_to_a_run_by_hand(settings: Settings) -> None:
    for run_type in ("manual", "scheduled"):
        run = SimpleNamespace(run_type=DagRunType(run_type), data_interval_start=None, data_interval_end=None)
        context: Any = {"dag_run": run, "params": {}, **woken_by(KEPT)}
        assert tasks.requested(context, settings).mode == "reconcile"


def sweep(run_id: str, *, deferred: int, run_type: str = "scheduled", **conf: Any) -> Any:
    """The context of a run while as many runs as that wait for the lease."""
    run = SimpleNamespace(dag_id="fruit_features", run_type=DagRunType(run_type), conf=conf)

    def count(dag_id: str, task_ids: list[str], run_ids: list[str], states: list[str]) -> int:
        assert (dag_id, task_ids, states) == ("fruit_features", ["wait_for_lease"], ["deferred"])
        return deferred if run_ids == ["scheduled__first"] else 0

    return {"dag_run": run, "run_id": run_id, "ti": SimpleNamespace(get_ti_count=count)}


class TestMergedSweeps:
    """Many runs may be active, so sweeps and events must not pile up behind a long run."""

    @pytest.mark.parametrize("run_type", ["scheduled", "asset_triggered"])
    def test_a_sweep_is_skipped_while_another_one_waits(self, settings: Settings, run_type: str) -> None:
        tasks.skip_when_another_waits(sweep("second", deferred=0, run_type=run_type), settings)
        note_waiting(settings, ("fruit_features", "scheduled__first"))
        with pytest.raises(AirflowSkipException, match="run scheduled__first waits for the lease"):
            tasks.skip_when_another_waits(sweep("second", deferred=1, run_type=run_type), settings)

    def test_an_event_is_skipped_while_another_one_waits_or_a_sweep_but_no_sweep_while_an_event_waits(
        self, settings: Settings
    ) -> None:
        """A run by events finds the keys that are kept, and nothing else."""
        event = sweep("second", deferred=1, run_type="asset_triggered") | woken_by(KEPT)
        note_waiting(settings, ("fruit_features", "scheduled__first"), "events")
        with pytest.raises(AirflowSkipException, match="run scheduled__first waits for the lease"):
            tasks.skip_when_another_waits(event, settings)
        tasks.skip_when_another_waits(sweep("second", deferred=1), settings)
        note_waiting(settings, ("fruit_features", "scheduled__other"), "events")
        note_waiting(settings, ("fruit_features", "scheduled__first"), "sweep")
        with pytest.raises(AirflowSkipException, match="run scheduled__first waits for the lease"):
            tasks.skip_when_another_waits(event, settings)

    @pytest.mark.parametrize(
        "context",
        [
            sweep("second", deferred=0),  # the one that waited has the lease now: it may have listed the bucket
            sweep("scheduled__first", deferred=1),  # cleared, it must not wait for itself
            sweep("manual__1", deferred=1, run_type="manual"),
            sweep("backfill__1", deferred=1, run_type="backfill"),
            sweep("second", deferred=1, backbone="MobileNetV2"),
        ],
    )
    def test_any_other_run_goes_on(self, settings: Settings, context: Any) -> None:
        note_waiting(settings, ("fruit_features", "scheduled__first"))
        tasks.skip_when_another_waits(context, settings)


@pytest.fixture
def cleared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The runs that were cleared."""
    runs: list[tuple[str, str]] = []
    monkeypatch.setattr(replan, "clear_run", lambda dag_id, run_id: runs.append((dag_id, run_id)))
    return runs


def run_of(clear_number: int) -> Any:
    return {"dag_run": SimpleNamespace(dag_id="fruit_features", run_id="manual__1", clear_number=clear_number)}


class TestConflict:
    def test_an_overtaken_run_is_cleared_once_and_then_fails(self, cleared: list[tuple[str, str]]) -> None:
        conflict = ConflictError("another run published")
        with pytest.raises(AirflowException, match="plans again"), non_retryable(), replan_on_conflict(run_of(0)):
            raise conflict
        assert cleared == [("fruit_features", "manual__1")]
        with pytest.raises(AirflowFailException, match="another"), non_retryable(), replan_on_conflict(run_of(1)):
            raise conflict
        assert len(cleared) == 1

    def test_no_other_error_clears_a_run(self, cleared: list[tuple[str, str]]) -> None:
        with pytest.raises(AirflowFailException, match="fix it"), non_retryable(), replan_on_conflict(run_of(0)):
            raise FruitsError("fix it")
        assert cleared == []

    @pytest.mark.parametrize("conflict", [True, False])
    def test_a_job_that_was_overtaken_says_so_in_its_document(
        self, settings: Settings, cleared: list[tuple[str, str]], conflict: bool
    ) -> None:
        values = {"state": "failed", "error": "another run published", "retryable": False, "conflict": conflict}
        write_documents(settings, document("pca", 0, **values), run_id="run")
        key = planned("run").key
        long_ago = datetime(2026, 1, 1, tzinfo=UTC)
        with (
            pytest.raises(AirflowException),
            non_retryable(),
            replan_on_conflict(run_of(0)),
            reraise_job_error(settings, "pca", key, long_ago),
        ):
            raise AirflowException("spark-submit: exit code 4")
        assert bool(cleared) == conflict


class TestNotes:
    @pytest.mark.parametrize(
        ("values", "again", "text"),
        [
            ({}, 0, ""),
            ({("plan", "counts"): {"create": 1_200, "update": 0}}, 0, "1,200 create"),
            (
                {("plan", "counts"): {"delete": 2}, ("publish", "return_value"): {"publication_id": "pub-7"}},
                1,
                "pub-7\n2 delete\nplanned again: cleared 1 times",
            ),
            ({("pca", "error"): "the disk is full"}, 0, "pca: the disk is full"),
            ({("plan", "pinned"): "ada pinned readers to pub-3"}, 0, "ada pinned readers to pub-3"),
            (
                {("plan", "waits"): ["Remove 5?"], ("pca", "waits"): ["Remove 5?", "Fit again?"]},
                0,
                "waits for an approval: Remove 5?\nwaits for an approval: Fit again?",
            ),
        ],
    )
    def test_a_note_tells_publication_counts_and_errors(self, values: Any, again: int, text: str) -> None:
        assert notes.note(values, again=again) == text

    def test_a_note_fits_into_airflows_field(self) -> None:
        assert len(notes.note({("pca", "error"): "x" * 5_000}, again=0)) < 1_000

    @pytest.mark.parametrize(
        ("dag_id", "author", "written"),
        [("fruit_features", None, True), ("fruit_features", "ada", False), ("another", None, False)],
    )
    def test_only_our_runs_get_a_note_and_a_persons_note_stays(
        self, monkeypatch: pytest.MonkeyPatch, dag_id: str, author: str | None, written: bool
    ) -> None:
        monkeypatch.setattr(notes, "session_of", lambda _: "a session")
        monkeypatch.setattr(notes, "xcoms", lambda *_: {("plan", "counts"): {"create": 1}})
        kept = SimpleNamespace(user_id=author) if author else None
        run = SimpleNamespace(dag_id=dag_id, dag_run_note=kept, note="before", clear_number=0)
        notes.on_dag_run_failed(run)
        assert run.note == ("1 create" if written else "before")

    def test_a_run_that_no_session_holds_is_not_looked_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`airflow dags test` ends such a run: to read its note raises an error."""

        class Detached:
            dag_id = "fruit_features"

            @property
            def dag_run_note(self) -> None:
                raise RuntimeError("not bound to a session")

        monkeypatch.setattr(notes, "session_of", lambda _: None)
        notes.on_dag_run_success(Detached())


class TestMetrics:
    def test_a_publication_is_measured(self) -> None:
        counts = {"features": 90, "quarantine": 10, "delete": 3, "remaining": 4}
        made = Publication(7, {}, "pub-7", run_id="manual__1", counts=counts)
        assert [(one.name, one.value) for one in metrics.of_publication(made)] == [
            ("features", 90),
            ("deletions", 3),
            ("pending", 4),
            ("quarantined_share", 0.1),
        ]

    def test_a_job_is_measured_also_when_a_gate_failed(self) -> None:
        gates = (Gate("drift", "required", False, 0.2, 0.05, ""), Gate("probe", "warn", True, None, None, ""))
        documents = RunDocuments(
            featurize=document("featurize", 0, featurized(images_per_second=180.0)),
            validate=document("validate", 1, validated(gates=gates), state="failed"),
        )
        sent = [list(metrics.of_job(job, documents)) for job in ("featurize", "pca", "validate")]
        assert sent == [
            [metrics.Gauge("images_per_second", 180.0)],
            [],
            [metrics.Gauge("gate", 0.2, {"gate": "drift"})],
        ]

    def test_they_go_where_airflows_settings_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sent: list[Any] = []
        monkeypatch.setattr(
            "fruits.airflow.metrics.stats.gauge", lambda name, value, tags: sent.append((name, value, tags))
        )
        now = datetime(2026, 11, 22, 12, tzinfo=UTC)
        metrics.send(metrics.of_wait(now - timedelta(seconds=90), now))
        seen = Observation(now, timedelta(hours=6), Freshness(now - timedelta(hours=1), pending=5))
        metrics.send(metrics.of_observation(seen))
        assert sent == [
            ("fruits.lease_wait_seconds", 90.0, {}),
            ("fruits.pending", 5, {}),
            ("fruits.tables_age_seconds", 3600.0, {}),
        ]


def test_a_task_links_to_the_report_of_its_run() -> None:
    key: Any = SimpleNamespace(dag_id="fruit_features", run_id="scheduled__2026-11-22T00:05:00+00:00")
    link = ReportLink().get_link(None, ti_key=key)
    assert link.endswith("/fruits/dags/fruit_features/runs/scheduled__2026-11-22T00%3A05%3A00%2B00%3A00")


class TestWatchdog:
    @pytest.fixture
    def told(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        """Airflow's variables."""
        variables: dict[str, str] = {}
        monkeypatch.setattr(Variable, "get", lambda key, default: variables.get(key) or default)
        monkeypatch.setattr(Variable, "set", variables.__setitem__)
        return variables

    @pytest.fixture
    def see(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Schedule], None]:
        """Sets what Airflow makes of the DAG; the settings are wrong."""
        monkeypatch.setenv("FRUITS_LAKE", "nonsense")

        def see(schedule: Schedule) -> None:
            monkeypatch.setattr(watchdog, "look_at_schedule", lambda: schedule)

        return see

    def test_wrong_settings_do_not_hide_the_rest(self, told: dict[str, str], see: Callable[[Schedule], None]) -> None:
        see(Schedule(paused=True))
        assert set(watchdog.watch()) == {"settings", "DAG"}

    def test_an_alert_that_was_not_sent_is_tried_again(
        self, told: dict[str, str], see: Callable[[Schedule], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sent: list[str] = []

        def fail(message: Any) -> list[str]:
            raise FruitsError("alert not sent by slack")

        see(Schedule(paused=True))
        monkeypatch.setattr(watchdog, "send", lambda message: [])
        watchdog.watch()  # no channel is set yet
        monkeypatch.setattr(watchdog, "send", fail)
        with pytest.raises(FruitsError):
            watchdog.watch()
        monkeypatch.setattr(watchdog, "send", lambda message: sent.append(message.subject) or ["slack"])
        for _ in range(2):
            watchdog.watch()
        see(Schedule())
        watchdog.watch()
        assert sent == ["fruits: settings, DAG", "fruits: DAG is over"]

    def test_a_dag_that_airflow_never_imported_is_found(
        self, told: dict[str, str], see: Callable[[Schedule], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unknown() -> Schedule:
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.GENERIC_ERROR, detail={"status_code": 404}))

        see(Schedule())
        monkeypatch.setattr(watchdog, "look_at_schedule", unknown)
        monkeypatch.setattr(watchdog, "import_errors", lambda: {"fruit_features.py": "a typo"})
        assert set(watchdog.watch()) == {"settings", "import of fruit_features.py"}
        monkeypatch.setattr(watchdog, "import_errors", dict)
        assert set(watchdog.watch()) == {"settings", "DAG"}

    @pytest.mark.parametrize("second", [(1, 0), (0, 1)])
    def test_a_run_that_was_just_created_is_no_stuck_one(
        self, monkeypatch: pytest.MonkeyPatch, second: tuple[int, int]
    ) -> None:
        looks = [(1, 0), second]
        dag = SimpleNamespace(is_paused=False, next_dagrun=None)
        monkeypatch.setattr(RuntimeTaskInstance, "get_dag", lambda _: dag)
        monkeypatch.setattr(watchdog, "_runs", lambda: looks.pop(0))
        monkeypatch.setattr(watchdog, "_SECOND_LOOK_SECONDS", 0)
        monkeypatch.setattr(watchdog, "import_errors", dict)
        seen = watchdog.look_at_schedule()
        assert (seen.queued, seen.running) == second
