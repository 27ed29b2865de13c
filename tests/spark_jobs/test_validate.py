from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fruits.analysis.gates import evaluate, failed
from fruits.analysis.probe import probe_accuracy
from fruits.errors import ExitCode, FruitsError
from fruits.lake import hashes
from fruits.lake.approvals import approve, read_approvals, withdraw
from fruits.lake.branches import commit_rows, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.publication import publications
from fruits.run.state import run_key
from fruits.spark.changes import changes_of
from fruits.spark.hashes import write_hashes
from fruits.spark.job import Job
from fruits.spark.measurements import Measured, duplicates_across_splits, measure
from fruits.spark.tables import Tables
from fruits.steps.publish import publication_of
from sample_photos import BROKEN
from tests.spark_jobs.conftest import SCHEMAS, replace_rows

pytestmark = [pytest.mark.jobs]

RUN = "r"


def gates_of(document):
    return {gate.name: gate for gate in document.result.gates}


class TestASoundRun:
    def test_every_required_gate_passes_and_is_recorded_with_what_it_found(self, first):
        document = first.documents.validate
        gates = gates_of(document)
        assert document.state == "succeeded"
        assert {name for name, gate in gates.items() if not gate.passed} <= {"unit_scale", "labels_fitted"}
        counts = {name: gates[name].value for name in ("manifest_accounted", "rows_accounted", "embeddings_complete")}
        assert set(counts.values()) == {0.0}
        assert gates["quarantined_share"].value == len(BROKEN) / len(first.photos)
        assert gates["explained_variance"].value == pytest.approx(first.documents.pca.result.explained_variance)
        assert gates["components_orthonormal"].value < 1e-12
        assert {"session", "tables", "probe"} <= set(document.seconds)

    def test_counts_are_those_of_the_tables(self, chain, first):
        result = first.documents.validate.result
        assert result.features == len(chain.rows(first.settings, "features"))
        assert result.quarantine == {str(reason): 1 for reason in BROKEN.values()}

    def test_the_publication_carries_the_findings(self, chain, first):
        published, result = chain.published(first.settings), first.documents.validate.result
        assert published.gates == result.gates
        assert (published.probe_raw, published.probe_embedded) == (result.probe.raw, result.probe.embedded)
        assert published.counts["features"] == result.features
        assert published.counts["quarantine"] == len(BROKEN)

    def test_the_publication_is_what_was_measured(self, chain, first):
        assert chain.published(first.settings).snapshots == first.documents.validate.result.snapshots

    def test_the_probe_is_fitted_on_the_fit_split_and_scored_on_the_held_out(self, chain, first):
        features, embeddings = (chain.rows(first.settings, name) for name in ("features", "embeddings"))
        for name, rows, column in (("raw", features, "vector"), ("embedded", embeddings, "embedding")):
            fit, held_out = ([row for row in rows if (row["split"] == "train") is wanted] for wanted in (True, False))
            arguments = [
                part
                for some in (fit, held_out)
                for part in (np.array([row[column] for row in some], np.float32), [row["label"] for row in some])
            ]
            assert getattr(first.documents.validate.result.probe, name) == probe_accuracy(*arguments)


@pytest.fixture(scope="module")
def worked(chain, new_settings):
    """Settings of a run that only waits for validation: twelve photos, among them one whose bytes are also held out
    under a label of its own, and one that is broken.
    """
    settings = new_settings(max_quarantined_share=0.1)
    photos = chain.photos(10)
    twin = next(data for key, data in photos.items() if key.startswith("Training/"))
    chain.put(settings, photos | {"Test/Only held out/twin.img": twin, "Training/Banana/broken.img": b"<html>"})
    chain.plan(settings, RUN, n_components=0.8)
    for job in ("featurize", "pca"):
        assert chain.submit(job, settings, RUN) == ExitCode.OK
    return settings


def test_warnings_are_recorded_and_do_not_stop_the_run(chain, worked):
    assert chain.submit("validate", worked, RUN) == ExitCode.OK
    gates = gates_of(chain.documents(worked, RUN).validate)
    assert {name for name, gate in gates.items() if not gate.passed} == {"labels_fitted", "duplicates_across_splits"}
    assert {gates[name].severity for name in ("labels_fitted", "duplicates_across_splits")} == {"warn"}
    assert gates["duplicates_across_splits"].value == 2  # both of the pair are new
    assert "Only held out" in gates["labels_fitted"].detail


class TestARequiredGateThatFails:
    def refused(self, chain, settings, caplog):
        """Names of the required gates that failed; exit code, document, log and publication must agree."""
        before = chain.heads(settings)
        assert chain.submit("validate", settings, RUN) == ExitCode.GATE_FAILED
        document = chain.documents(settings, RUN).validate
        broken = {gate.name for gate in failed(document.result.gates)}
        assert (document.state, document.retryable) == ("failed", False)
        assert "required gates failed, nothing is published and readers stay where they were" in document.error
        assert all(name in document.error for name in broken)
        assert document.error in caplog.text
        with pytest.raises(FruitsError, match="its validate job has not succeeded.*required gates failed"):
            chain.publish(settings, RUN)
        assert chain.heads(settings) == before
        assert publications(Lake.open(settings)) == []
        return broken

    def test_a_threshold_that_is_not_met(self, chain, worked, caplog):
        strict = worked.model_copy(
            update={"max_quarantined_share": 0.01, "min_explained_variance": 0.999, "min_probe_ratio": 9.0}
        )
        assert self.refused(chain, strict, caplog) == {"quarantined_share", "explained_variance"}
        probe = gates_of(chain.documents(worked, RUN).validate)["probe"]
        assert (probe.severity, probe.passed) == ("warn", False), "three held-out photos prove nothing"

    def test_a_person_approves_these_findings_of_this_run_and_no_others(self, chain, worked, caplog):
        strict = worked.model_copy(update={"max_quarantined_share": 0.01, "min_explained_variance": 0.999})
        withdraw(worked, read_approvals(worked))  # of the tests before
        self.refused(chain, strict, caplog)
        (question,) = read_approvals(worked)
        assert set(question.details["gates"]) == {"quarantined_share", "explained_variance"}
        assert f"fruits approve --run {run_key(RUN)} --gate explained_variance --gate quarantined_share" in caplog.text
        decided = approve(worked, question, by="ada", why="few photos explain little", via="fruits approve")

        stricter = strict.model_copy(update={"max_quarantined_share": 0.005})
        self.refused(chain, stricter, caplog)
        assert chain.submit("validate", strict, RUN) == ExitCode.OK
        documents = chain.documents(worked, RUN)
        assert documents.validate.done.approvals == (decided,)
        assert publication_of(documents.planned, documents).approvals == (decided,)
        withdraw(worked, read_approvals(worked))

    def test_a_photo_that_got_lost_and_the_document_names_what_was_measured(self, chain, worked, caplog):
        row = chain.branch_rows(worked, RUN, "features")[0]
        with chain.written_otherwise(worked, RUN, "features", row["key"], []) as snapshot:
            assert self.refused(chain, worked, caplog) == {
                "manifest_accounted",
                "rows_accounted",
                "embeddings_complete",
            }
            assert chain.documents(worked, RUN).validate.result.snapshots["features"] == snapshot


SPOILT: dict[str, Any] = {
    "a photo twice": (
        "features",
        [{}, {}],
        {"manifest_accounted", "rows_accounted", "embeddings_complete"},
    ),
    "a vector of zeros": ("features", [{"vector": [0.0] * 1280}], {"vectors_usable"}),
    "a vector with NaN": ("features", [{"vector": [np.nan, 1.0] * 640}], {"vectors_usable"}),
    "a vector with infinity": ("features", [{"vector": [np.inf, 1.0] * 640}], {"vectors_usable"}),
    "a vector of another width": ("features", [{"vector": [1.0] * 7}], {"vector_width"}),
    "no embedding": ("embeddings", [], {"embeddings_complete"}),
    "two embeddings": ("embeddings", [{}, {}], {"embeddings_complete"}),
    "a stale embedding": ("embeddings", [{"etag": "of another object"}], {"embeddings_complete"}),
}
"""By name: the table in which the copies of a row are altered, the copies, and the required gates that fail."""


def by_spark(job):
    """The same job where Spark and executors read the rows, as they do in a large lake."""
    tables = job.tables
    lake = Lake(job.settings.model_copy(update={"few_photos": 0}))
    return replace(job, tables=Tables(lambda: tables.spark, lake, tables.writer))


def by_both(job, pca_id):
    """What the gates find in a job's rows, read by Spark, and read by the driver."""
    measured = [Measured.of(one, pca_id) for one in (by_spark(job), job)]
    assert [one.changes.at_hand for one in measured] == [False, True]
    return tuple(measure(one) for one in measured)


def broken_of(results, settings):
    return [{gate.name for gate in failed(evaluate(findings, settings))} for findings, _ in results]


def check_equal(one, other):
    """Findings and counters are equal; sums may have been made in another order."""
    (findings, counters), (of_other, others_counters) = one, other
    assert findings.scale_ratio == pytest.approx(of_other.scale_ratio, rel=1e-12)
    assert replace(findings, scale_ratio=of_other.scale_ratio) == of_other
    assert counters == others_counters


@pytest.fixture(scope="module")
def first_run(chain, worked):
    """What is found in a first run's rows by both ways: in the sound rows, and in those of each of ``SPOILT``."""
    lake, found = Lake.open(worked), {}
    spoilt: dict[str, Any] = {"sound": {}}
    for case, (name, changes, _) in SPOILT.items():
        row = chain.branch_rows(worked, RUN, name)[2]
        copies = [{**row, **change} for change in changes]
        writer = chain.writer(worked, RUN, name)
        sound = lake.head(name, writer.branch)
        spoilt[case] = {name: replace_rows(lake, writer, name, row["key"], copies)}
        start_branch(lake, name, writer.branch, sound)

    def measure_all(job):
        for case, snapshots in spoilt.items():
            found[case] = by_both(replace(job, start={**job.start, **snapshots}), job.documents.projected.pca_id)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain.jobs["validate"], "validate", measure_all)
        assert chain.submit("validate", worked, RUN) == ExitCode.OK
    return found


def test_spark_and_the_driver_find_the_same_in_all_rows(first_run):
    by_spark, at_hand = first_run["sound"]
    check_equal(by_spark, at_hand)
    findings, _ = at_hand
    assert (findings.rows, findings.new_rows, findings.duplicates_across_splits) == (12, 11, 2)
    assert (findings.unaccounted, findings.missing_embeddings, findings.uncounted) == ([], 0, 0)
    assert findings.probe_rows == 3


@pytest.mark.parametrize("case", SPOILT)
def test_rows_that_readers_must_not_see_fail_their_gate_alone(first_run, worked, case):
    *_, expected = SPOILT[case]
    assert broken_of(first_run[case], worked) == [expected, expected]


@pytest.fixture(scope="module")
def increment(chain, new_settings):
    """Settings of a second run that only waits for validation: photos are new, overwritten, deleted, broken."""
    settings = new_settings(max_quarantined_share=0.9, min_probe_ratio=0)
    photos = chain.photos(12) | {"Training/Kiwi/broken.img": b"<html>", "Training/Kiwi/mended.img": b"<html>"}
    chain.put(settings, photos)
    chain.run(settings, "first", n_components=3)
    new = chain.photos(4, start=12)
    twin = photos["Training/Apple Red/0.img"]
    overwritten = {
        "Training/Banana/1.img": chain.photo(70),
        "Training/Kiwi/2.img": b"<html>",
        "Training/Kiwi/mended.img": chain.photo(71),
    }
    chain.put(settings, new | overwritten | {"Test/Only held out/twin.img": twin, "Training/Kiwi/ill.img": b""})
    moved = "Test/Apple Red/3.img"
    chain.put(settings, {"Training/Apple Red/moved.img": photos[moved]})
    chain.delete(settings, moved, "Training/Kiwi/broken.img")
    assert chain.plan(settings, RUN, n_components=3, refit="never").counts == {
        "create": 7, "update": 3, "delete": 2, "unchanged": 9, "quarantined": 0, "pending": 0, "ignored": 0,
    }  # fmt: skip
    for job in ("featurize", "pca"):
        assert chain.submit(job, settings, RUN) == ExitCode.OK
    return settings


def append(lake, writer, name, **changes):
    row = lake.read(name, lake.head(name, writer.branch)).to_pylist()[0]
    rows = pa.Table.from_pylist([{**row, **changes}], schema=SCHEMAS[name])
    commit_rows(lake, name, lambda change: change.append(rows, **writer.commit), branch=writer.branch)


def delete(tables, writer, name, key):
    """As Spark deletes: the row stays in its file, and a file beside names its position."""
    by = Tables(lambda: tables.spark, tables.lake, writer)
    for option, value in by.session_properties.items():
        tables.spark.conf.set(option, value)
    by.delete_keys(name, pa.table({"key": [key]}), tables.lake.read(name, None).to_pylist()[0]["model_id"])


UNPLANNED = {"rows_accounted", "embeddings_complete"}
CHANGED_OTHERWISE: dict[str, Any] = {
    "a row of another program": ("features", append, {"key": "Training/Kiwi/foreign.img"}, UNPLANNED),
    "the old row of an updated photo": (
        "features",
        append,
        {"key": "Training/Banana/1.img", "run_id": "first"},
        {"manifest_accounted", *UNPLANNED},
    ),
    "a photo that nobody planned is lost": ("features", delete, "Training/Banana/4.img", {"rows_accounted"}),
    "a new photo is lost": ("features", delete, "Training/Apple Red/12.img", {"rows_accounted"}),
    "a photo in quarantine is lost": ("quarantine", delete, "Training/Kiwi/ill.img", {"rows_accounted"}),
    "an embedding that nobody planned is lost": (
        "embeddings",
        delete,
        "Training/Banana/4.img",
        {"embeddings_complete"},
    ),
    "two embeddings": ("embeddings", append, {"key": "Training/Apple Red/12.img"}, {"embeddings_complete"}),
}
"""By name: the table that is changed after `pca`, how, and the required gates that fail."""


def duplicates_by(job, pca_id):
    """The duplicates among the changes: of all features, and looked up in `photo_hashes` of the run's base alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashes, "FEWEST_ROWS", 0)
        scanned = [duplicates_across_splits(changes_of(one, pca_id)) for one in (by_spark(job), job)]
        patch.setattr(hashes, "FEWEST_ROWS", 9)  # one more than the run wrote
        job.tables.start_branch("photo_hashes", job.start["photo_hashes"])
        write_hashes(job.tables, job.run.base.snapshots["features"])
        start = {**job.start, **job.wrote("photo_hashes")}
        patch.setattr(Job, "features", None)
        hashed = replace(job, start=start)
        return [*scanned, *(duplicates_across_splits(changes_of(one, pca_id)) for one in (by_spark(hashed), hashed))]


@pytest.fixture(scope="module")
def measured(chain, increment):
    """Of an increment: the findings of its changes, those of all rows, and the gates that fail when rows differ."""
    lake = Lake.open(increment)
    found: dict[str, Any] = {"broken": {}}

    def measure_all(job):
        pca_id = job.documents.projected.pca_id
        assert not changes_of(job, pca_id).of_all
        found["changes"] = by_both(job, pca_id)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fruits.spark.changes.reason_to_read_all", lambda *_: "to compare")
            found["all rows"] = by_both(job, pca_id)
        found["duplicates"] = duplicates_by(job, pca_id)
        for case, (name, change, how, _) in CHANGED_OTHERWISE.items():
            writer = chain.writer(increment, RUN, name)
            sound = lake.head(name, writer.branch)
            if change is delete:
                delete(job.tables, writer, name, how)
            else:
                append(lake, writer, name, **how)
            changed = replace(job, start={**job.start, name: lake.head(name, writer.branch)})
            start_branch(lake, name, writer.branch, sound)
            assert not changes_of(changed, pca_id).of_all, case
            found["broken"][case] = broken_of(by_both(changed, pca_id), job.settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain.jobs["validate"], "validate", measure_all)
        assert chain.submit("validate", increment, RUN) == ExitCode.OK
    return found


def test_the_changes_of_a_run_tell_the_gates_what_all_rows_would(measured):
    by_spark, at_hand = measured["changes"]
    check_equal(by_spark, at_hand)
    for of_all in measured["all rows"]:
        check_equal(of_all, at_hand)
    findings, counters = at_hand
    assert (findings.rows, findings.quarantined, findings.new_rows, findings.duplicates_across_splits) == (19, 2, 8, 1)
    assert (findings.unaccounted, findings.missing_embeddings, findings.uncounted) == ([], 0, 0)
    assert counters.unfitted_labels == ["Only held out"]


def test_duplicates_looked_up_by_hash_are_those_among_all_rows(measured):
    assert measured["duplicates"] == [1, 1, 1, 1]


@pytest.mark.parametrize("case", CHANGED_OTHERWISE)
def test_rows_that_no_plan_explains_fail_a_gate_that_reads_the_changes_alone(measured, case):
    *_, expected = CHANGED_OTHERWISE[case]
    by_spark, at_hand = measured["broken"][case]
    assert by_spark == expected
    assert at_hand >= expected, "Spark reads appended rows without what was deleted since; the driver reads with it"


def test_the_counters_of_a_publication_are_those_of_its_tables(chain, increment):
    assert chain.submit("validate", increment, RUN) == ExitCode.OK
    published = chain.publish(increment, RUN)
    features = Counter((row["label"], row["split"]) for row in chain.rows(increment, "features"))
    reasons = Counter(row["reason"] for row in chain.rows(increment, "quarantine"))
    counts = {(one.label, one.split): one.rows for one in published.counters if one.reason is None}
    assert counts == features
    assert published.counted.reasons == reasons
    assert chain.published(increment).counters == published.counters


def test_validating_before_the_pca_says_what_to_run(chain, new_settings, caplog):
    settings = new_settings()
    chain.put(settings, chain.photos(2))
    chain.plan(settings, RUN)
    assert chain.submit("validate", settings, RUN) == ExitCode.BAD_INPUT
    assert f"run {run_key(RUN)}: its featurize job has not succeeded; run that first" in caplog.text
    with pytest.raises(FruitsError, match="its featurize job has not succeeded"):
        chain.publish(settings, RUN)
