"""When the PCA is fitted again, and when a person is asked first: the decisions of the `pca` job, without Spark."""

from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fruits.analysis.moments import moments_of
from fruits.lake.approvals import approve, read_approvals
from fruits.lake.catalog import Lake
from fruits.lake.publication import Publication, current_base
from fruits.photos.keys import KeyPattern, KeyRules
from fruits.run.documents import Projected
from fruits.run.request import RunRequest
from fruits.run.state import WRITTEN, PlannedRun
from fruits.settings import Settings
from fruits.spark import projection
from fruits.spark.statistics import Updated
from tests.loading import load_file
from tests.runs import MODEL_ID, base, planned

pytestmark = pytest.mark.jobs

GREW = "fit split grew from 6 to 12"
SNAPSHOTS = {name: 1 for names in WRITTEN.values() for name in names}


@pytest.fixture
def settings(folder_lake: Settings) -> Settings:
    """Refits of more than eleven embeddings wait."""
    return folder_lake.model_copy(update={"approval_rows": 11})


def run(**changed: Any) -> PlannedRun:
    """A run on a lake whose readers have twelve rows."""
    return planned(**{"base": base(1, model_id=MODEL_ID, pca_id="pca-1"), "known_rows": 12, **changed})


def job_of(settings: Settings, planned: PlannedRun, remaining: int = 0) -> Any:
    """A job; what it records comes into ``recorded``."""
    recorded: list[Projected] = []
    return SimpleNamespace(
        settings=settings,
        is_small=False,
        lake=None,
        run=planned,
        start=SNAPSHOTS,
        remaining=remaining,
        start_branches=lambda *_: None,
        manifest=lambda: SimpleNamespace(replaced_keys=None),
        tables=SimpleNamespace(delete_keys=lambda *_: None),
        phase=lambda _: nullcontext(),
        wrote=lambda *names: dict.fromkeys(names, 1),
        recorder=SimpleNamespace(record=recorded.append),
        recorded=recorded,
    )


def version(pca_id: str) -> Any:
    """A PCA version."""
    pca = SimpleNamespace(n=6, n_components=2, explained_variance_ratio=SimpleNamespace(sum=lambda: 0.9))
    return SimpleNamespace(pca_id=pca_id, pca=pca, n_components="2", split_rules=None, run_id="r")


@pytest.fixture
def update_pca(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the job on readers whose PCA is `pca-1` (or none), when a refit is due; returns what it recorded."""
    script = load_file(Path(__file__).parents[3] / "spark_jobs" / "pca.py", "pca_without_spark")

    def update(job: Any, current: Any) -> Projected:
        reason = "first fit" if current is None else GREW
        monkeypatch.setattr(script, "update_statistics", lambda *_: Updated(SimpleNamespace(n=12), False, True))
        monkeypatch.setattr(script, "recompute", lambda _: SimpleNamespace(n=11))
        monkeypatch.setattr(script, "current_version", lambda _: current)
        monkeypatch.setattr(script, "reason_to_refit", lambda *_: projection.Refit(reason, 0.0))
        monkeypatch.setattr(script, "project_changed", lambda *_: 1)
        monkeypatch.setattr(script, "fit_version", lambda *_: (version("pca-2"), 13))
        monkeypatch.setattr(script, "update_sample", lambda *_: None)
        monkeypatch.setattr(script, "update_classifier", lambda *_: None)
        monkeypatch.setattr(script, "figures", lambda version: {"pca_id": version.pca_id})
        script.update_pca(job)
        result: Projected = job.recorded[-1]
        return result

    return update


class TestARefitThatIsDue:
    def test_waits_for_a_person_while_the_run_goes_on_under_the_pca_that_there_is(
        self, settings: Settings, update_pca: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        result = update_pca(job_of(settings, run()), version("pca-1"))
        assert (result.action, result.pca_id, result.reason, result.projected) == ("project", "pca-1", None, 1)
        (question,) = read_approvals(settings)
        assert result.undecided == (question,)
        assert (question.kind, question.number, question.details["reasons"]) == ("refit", 12, [GREW])
        assert f"fruits approve {question.short}" in caplog.text

    def test_is_done_once_a_person_has_approved_and_the_document_says_so(
        self, settings: Settings, update_pca: Any
    ) -> None:
        (question,) = update_pca(job_of(settings, run()), version("pca-1")).undecided
        decision = approve(settings, question, by="ada", why="a new camera", via="fruits approve")
        result = update_pca(job_of(settings, run()), version("pca-1"))
        assert (result.action, result.pca_id, result.reason) == ("fit", "pca-2", GREW)
        assert (result.approvals, result.undecided) == ((decision,), ())

    def test_is_asked_once_for_whatever_reason(self, settings: Settings, update_pca: Any) -> None:
        first, later = (
            update_pca(job_of(settings, run(known_rows=rows)), version("pca-1")).undecided for rows in (12, 15)
        )
        assert first == later

    @pytest.mark.parametrize(
        "changed",
        [
            {"known_rows": 11},
            {"request": RunRequest(prefix="", refit="always")},  # its plan has asked
            {"base": base(1, model_id="mobile-1", pca_id="pca-9")},  # so has the switch of backbone
        ],
    )
    def test_needs_no_approval_below_the_size_or_where_the_plan_has_asked(
        self, settings: Settings, update_pca: Any, changed: dict[str, Any]
    ) -> None:
        result = update_pca(job_of(settings, run(**changed)), version("pca-1"))
        assert (result.action, read_approvals(settings)) == ("fit", [])

    def test_takes_the_statistics_from_the_rows_when_a_person_asks_for_it(
        self, settings: Settings, update_pca: Any
    ) -> None:
        asked = job_of(settings, run(request=RunRequest(prefix="", refit="always")))
        for job, current, expected in (
            (asked, version("pca-1"), (True, 11)),
            (asked, None, (False, 12)),  # they were just taken from them
            (job_of(settings, run(known_rows=11)), version("pca-1"), (False, 12)),
        ):
            result = update_pca(job, current)
            assert (result.recomputed, result.n_statistics) == expected

    def test_a_first_fit_asks_nobody(self, settings: Settings, update_pca: Any) -> None:
        result = update_pca(job_of(settings, run()), None)
        assert (result.action, result.reason, read_approvals(settings)) == ("fit", "first fit", [])


@pytest.mark.parametrize(("remaining", "known"), [(0, 6), (3, 6)])
def test_an_approved_refit_is_done_also_when_nothing_drifts_and_photos_are_pending(
    settings: Settings, update_pca: Any, monkeypatch: pytest.MonkeyPatch, remaining: int, known: int
) -> None:
    (question,) = update_pca(job_of(settings, run()), version("pca-1")).undecided
    decision = approve(settings, question, by="ada", why="a new camera", via="Airflow")
    monkeypatch.setattr(projection, "measure_drift", lambda *_: (0.0, 0))
    monkeypatch.setattr(projection, "published_under_backbone", lambda _: [])
    current = version("pca-1")
    quiet = job_of(settings, run(request=RunRequest(prefix="", n_components=2)), remaining)
    moments: Any = SimpleNamespace(n=known)
    assert projection.reason_to_refit(quiet, current, moments) == projection.Refit(None, 0.0)
    approved = job_of(settings, run(request=quiet.run.request, approvals=(decision,)), remaining)
    assert projection.reason_to_refit(approved, current, moments).reason == "approved by ada: a new camera"


@pytest.mark.parametrize(
    ("fitted", "refused", "n_components", "due"),
    [
        (12, None, 2, True),
        (12, None, 6, False),  # six photos allow five components
        (12, 6, 2, False),  # a refit of six photos has failed its gates
        (12, 24, 2, True),  # that was a refit of four times as many
    ],
)
def test_a_fit_split_that_shrank_is_fitted_again_where_it_can_be(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    fitted: int,
    refused: int | None,
    n_components: int,
    due: bool,
) -> None:
    current = version("pca-1")
    current.pca.n, current.n_components = fitted, str(n_components)
    failed = None if refused is None else SimpleNamespace(pca=SimpleNamespace(n=refused), pca_id="pca-2")
    monkeypatch.setattr(projection, "measure_drift", lambda *_: (None, 0))
    monkeypatch.setattr(projection, "published_under_backbone", lambda _: [])
    monkeypatch.setattr(projection, "refused_version", lambda *_: failed)
    job = job_of(settings, run(request=RunRequest(prefix="", n_components=n_components)))
    refit = projection.reason_to_refit(job, current, moments_of(np.eye(6)))
    assert (refit.reason, refit.keep) == (("fit split shrank from 12 to 6", current) if due else (None, None))


class NoRows:
    """Rows that nobody finds."""

    def only(self, **_: str) -> "NoRows":
        return self

    def apply(self, *_: object) -> list[object]:
        return []


@pytest.mark.parametrize(
    ("before", "remaining", "approved", "since_fit"),
    [
        (None, None, False, False),  # a run by events after another
        (None, 0, False, True),  # the sweep after them decides
        (None, None, True, True),
        (3, 2, False, False),  # of a backfill
        (3, 0, False, True),
        (0, 0, False, False),
    ],
)
def test_only_a_run_that_decides_about_a_refit_reads_the_embeddings_of_the_runs_before(
    settings: Settings,
    update_pca: Any,
    monkeypatch: pytest.MonkeyPatch,
    before: int | None,
    remaining: int | None,
    approved: bool,
    since_fit: bool,
) -> None:
    (question,) = update_pca(job_of(settings, run()), version("pca-1")).undecided
    decision = approve(settings, question, by="ada", why="a new camera", via="Airflow")
    counts = {} if before is None else {"remaining": before}
    readers = base(1, model_id=MODEL_ID, pca_id="pca-1", counts=counts)
    job = job_of(settings, run(base=readers, approvals=(decision,) if approved else ()), 0)
    job.remaining = remaining
    job.new_rows = NoRows
    read: list[Any] = []
    monkeypatch.setattr(projection, "rows_at", lambda _, name, *__, **of: read.append((name, of)) or NoRows())
    assert projection.measure_drift(job, version("pca-1")) == (None, 0)
    assert read == [("embeddings", {"pca_id": "pca-1"})] * since_fit


@pytest.fixture
def published(folder_lake: Settings, fake_run: Any) -> Any:
    """Publishes backbones with their PCA versions, and the rules for keys; gives a job of the next run."""

    def publish(*rows: tuple[str, str, str | None]) -> Any:
        for model_id, pca_id, rules in rows:
            run_before = fake_run(folder_lake)
            base = run_before.base.publication
            sequence = base.sequence + 1
            row = Publication(sequence, base.snapshots, f"pub-{sequence}", run_before.key, None, model_id, pca_id)
            run_before.publish_row(replace(row, published_at=datetime.now(UTC), counts={}, rules=rules))
        job = job_of(folder_lake, planned(base=current_base(Lake.open(folder_lake)), known_rows=6))
        job.lake = Lake.open(folder_lake)
        return job

    return publish


def test_a_backbone_that_readers_come_back_to_has_the_pca_that_they_had_and_not_a_newer_one_that_was_refused(
    published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "load_versions", lambda *_: [version("pca-1"), version("refused")])
    for before, expected in (
        ((), "refused"),
        (((MODEL_ID, "pca-1", None),), "pca-1"),
        ((("mobile-1", "pca-9", None),), "pca-1"),
        (((MODEL_ID, "gone", None),), "pca-1"),
    ):
        current = projection.current_version(published(*before))
        assert current
        assert current.pca_id == expected


@pytest.mark.parametrize(
    ("rules", "due"),
    [
        ((None,), False),  # of an earlier release alone
        (("today's",), False),
        (("others",), True),
        (("others", None), True),  # a run by events came before the sweep
        (("others", "today's"), True),  # the refit waited for an approval
    ],
)
def test_a_version_of_an_earlier_release_is_fitted_again_when_the_rules_of_keys_changed_since(
    published: Any, monkeypatch: pytest.MonkeyPatch, folder_lake: Settings, rules: tuple[str | None, ...], due: bool
) -> None:
    """Such a version does not say its rules, and may be fitted on photos that are held out now."""
    monkeypatch.setattr(projection, "measure_drift", lambda *_: (None, 0))
    today = KeyRules.of(folder_lake).fingerprint
    job = published(*((MODEL_ID, "pca-1", today if one == "today's" else one) for one in rules))
    job.run = job.run.model_copy(update={"request": RunRequest(prefix="", n_components=2)})
    refit = projection.reason_to_refit(job, version("pca-1"), moments_of(np.eye(6)))
    pattern = KeyPattern.of(folder_lake).split_rules
    changed = f"the rules of the split changed from earlier rules (others) to {pattern}"
    assert (refit.reason, refit.keep) == (changed if due else None, None)
