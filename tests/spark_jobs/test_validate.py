from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.expressions import EqualTo

from fruits.analysis.probe import probe_accuracy
from fruits.errors import ExitCode, FruitsError
from fruits.lake.branches import branch_name, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.publication import publications
from fruits.lake.schemas import TABLES
from fruits.run.state import run_key
from sample_photos import BROKEN

pytestmark = [pytest.mark.jobs]

RUN = "r"
SCHEMAS = {table.name: table.schema for table in TABLES}


def gates_of(document):
    return {gate["name"]: gate for gate in document["gates"]}


class TestASoundRun:
    def test_every_required_gate_passes_and_is_recorded_with_what_it_found(self, first):
        document = first.documents["validate"]
        gates = gates_of(document)
        assert document["state"] == "succeeded"
        assert {gate["name"] for gate in document["gates"] if not gate["passed"]} <= {"unit_scale", "labels_fitted"}
        found = {name: gates[name]["value"] for name in ("manifest_accounted", "rows_accounted", "embeddings_complete")}
        assert set(found.values()) == {0.0}
        assert gates["quarantined_share"]["value"] == len(BROKEN) / len(first.photos)
        assert gates["explained_variance"]["value"] == pytest.approx(first.documents["pca"]["explained_variance"])
        assert gates["components_orthonormal"]["value"] < 1e-12
        assert {"session", "tables", "probe"} <= set(document["seconds"])

    def test_counts_are_those_of_the_tables(self, chain, first):
        document = first.documents["validate"]
        assert document["features"] == len(chain.rows(first.settings, "features"))
        assert document["quarantine"] == {str(reason): 1 for reason in BROKEN.values()}

    def test_the_publication_carries_the_findings(self, chain, first):
        published, document = chain.published(first.settings), first.documents["validate"]
        assert [gate.to_document() for gate in published.gates] == document["gates"]
        assert (published.probe_raw, published.probe_embedded) == (
            document["probe"]["raw"],
            document["probe"]["embedded"],
        )
        assert published.counts["features"] == document["features"]
        assert published.counts["quarantine"] == len(BROKEN)

    def test_the_probe_is_fitted_on_the_fit_split_and_scored_on_the_held_out(self, chain, first):
        features, embeddings = (chain.rows(first.settings, name) for name in ("features", "embeddings"))
        for name, rows, column in (("raw", features, "vector"), ("embedded", embeddings, "embedding")):
            fit, held_out = ([row for row in rows if (row["split"] == "train") is wanted] for wanted in (True, False))
            arguments = [
                part
                for some in (fit, held_out)
                for part in (np.array([row[column] for row in some], np.float32), [row["label"] for row in some])
            ]
            assert first.documents["validate"]["probe"][name] == probe_accuracy(*arguments)


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
    gates = gates_of(chain.documents(worked, RUN)["validate"])
    assert {name for name, gate in gates.items() if not gate["passed"]} == {"labels_fitted", "duplicates_across_splits"}
    assert {gates[name]["severity"] for name in ("labels_fitted", "duplicates_across_splits")} == {"warn"}
    assert gates["duplicates_across_splits"]["value"] == 2  # both of the pair are new
    assert "Only held out" in gates["labels_fitted"]["detail"]


class TestARequiredGateThatFails:
    def refused(self, chain, settings, caplog):
        """Names of the required gates that failed; exit code, document, log and publication must agree."""
        before = chain.heads(settings)
        assert chain.submit("validate", settings, RUN) == ExitCode.GATE_FAILED
        document = chain.documents(settings, RUN)["validate"]
        broken = {gate["name"] for gate in document["gates"] if gate["severity"] == "required" and not gate["passed"]}
        assert (document["state"], document["mendable"]) == ("failed", True)
        assert "required gates failed, nothing is published and readers stay where they were" in document["error"]
        assert all(name in document["error"] for name in broken)
        assert document["error"] in caplog.text
        with pytest.raises(FruitsError, match="its validate job has not succeeded.*required gates failed"):
            chain.publish(settings, RUN)
        assert chain.heads(settings) == before
        assert publications(Lake.open(settings)) == []
        return broken

    def test_a_threshold_that_is_not_met(self, chain, worked, caplog):
        strict = worked.model_copy(
            update={"max_quarantined_share": 0.05, "min_explained_variance": 0.999, "min_probe_ratio": 9.0}
        )
        assert self.refused(chain, strict, caplog) == {"quarantined_share", "explained_variance"}
        probe = gates_of(chain.documents(worked, RUN)["validate"])["probe"]
        assert (probe["severity"], probe["passed"]) == ("warn", False), "three held-out photos prove nothing"

    def test_a_photo_that_got_lost(self, chain, worked, caplog):
        with tampered(worked, "features", 0, None):
            assert self.refused(chain, worked, caplog) == {
                "manifest_accounted",
                "rows_accounted",
                "embeddings_complete",
            }

    def test_a_photo_that_is_there_twice(self, chain, worked, caplog):
        with tampered(worked, "features", 0, {}, {}):
            assert self.refused(chain, worked, caplog) == {
                "manifest_accounted",
                "rows_accounted",
                "embeddings_complete",
            }

    @pytest.mark.parametrize("values", [[0.0], [np.nan, 1.0], [np.inf, 1.0]], ids=["zeros", "NaN", "infinity"])
    def test_a_vector_of_zeros_or_with_what_is_not_a_number(self, chain, worked, caplog, values):
        with tampered(worked, "features", 3, {"vector": np.resize(values, 1280).tolist()}):
            assert self.refused(chain, worked, caplog) == {"vectors_usable"}

    def test_a_vector_of_another_width(self, chain, worked, caplog):
        with tampered(worked, "features", 3, {"vector": [1.0] * 7}):
            assert self.refused(chain, worked, caplog) == {"vector_width"}

    @pytest.mark.parametrize(
        "rows", [(None,), ({}, {}), ({"etag": "of another object"},)], ids=["none", "two", "stale"]
    )
    def test_a_feature_without_exactly_one_embedding(self, chain, worked, caplog, rows):
        with tampered(worked, "embeddings", 0, *rows):
            assert self.refused(chain, worked, caplog) == {"embeddings_complete"}


@contextmanager
def tampered(settings, name, number, *changes):
    """Inside, one row on the run's branch of a table is gone (None), or replaced by changed copies of itself."""
    lake, branch = Lake.open(settings), branch_name(run_key(RUN))
    before = lake.head(name, branch)
    row = sorted(lake.read(name, before).to_pylist(), key=lambda row: row["key"])[number]
    copies = [{**row, **change} for change in changes if change is not None]
    table = lake.table(name)
    with table.transaction() as transaction:
        transaction.delete(EqualTo("key", row["key"]), branch=branch)
        if copies:
            transaction.append(pa.Table.from_pylist(copies, schema=SCHEMAS[name]), branch=branch)
    try:
        yield
    finally:
        start_branch(lake, name, branch, before)


def test_validating_before_the_pca_says_what_to_run(chain, new_settings, caplog):
    settings = new_settings()
    chain.put(settings, chain.photos(2))
    chain.plan(settings, RUN)
    assert chain.submit("validate", settings, RUN) == ExitCode.BAD_INPUT
    assert f"run {run_key(RUN)}: its featurize job has not succeeded; run that first" in caplog.text
    with pytest.raises(FruitsError, match="its featurize job has not succeeded"):
        chain.publish(settings, RUN)
