import json
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from fruits.analysis.gates import Gate
from fruits.analysis.quality import ConfusedPair, Confusion
from fruits.lake.approvals import Approval
from fruits.lake.publication import Publication
from fruits.photos.ignore import Names
from fruits.run.documents import RunDocuments
from fruits.serve.state import FittedVersion, State
from fruits.serve.summary import as_text, describe_catalog, summarise
from fruits.settings import Settings
from tests.runs import classified, document, featurized, planned, projected, published, validated

SETTINGS = Settings.load(lake="file:///lake", catalog_uri="sqlite:////lake/catalog.db")
COUNTS = {"create": 5, "update": 2, "delete": 1, "unchanged": 1_234, "quarantined": 3, "pending": 7, "ignored": 4}
IDLE = {**dict.fromkeys(COUNTS, 0), "unchanged": 1_241}
GATES = (
    Gate("probe", "required", True, 0.97, 0.9, "kept"),
    Gate("drift", "warn", False, 0.2, 0.05, "drifted"),
    Gate("explained_variance", "required", True, None, 0.6, "none"),
)
PUBLICATION = Publication(
    sequence=3,
    snapshots={"features": 1},
    publication_id="pub-000003-abcdef",
    run_id="manual__1",
    published_at=datetime(2026, 11, 20, tzinfo=UTC),
    model_id="lite0-0123",
    pca_id="pca-1",
    counts={**COUNTS, "features": 1_240, "quarantine": 4},
    probe_raw=0.91,
    probe_embedded=0.885,
    gates=GATES,
)
PCA = FittedVersion(
    "pca-1", "lite0-0123", 1_000, 64, "0.95", (0.9512,), None, "first fit", datetime(2026, 11, 20, tzinfo=UTC)
)
QUARANTINE = {"key_pattern": 1, "truncated": 3}
STATE = State(PUBLICATION, PCA, QUARANTINE)


def task(name, result, **changed):
    return document(name, 0, result, run_id="manual__1", wall_seconds=2.5, **changed)


IGNORED = {"hidden": Names.of([".DS_Store", "Kiwi/._1.jpg"]), "sidecar": Names.of(["a.txt", "b.txt"])}
PLAN = task("plan", planned("manual__1", counts=COUNTS, ignored=IGNORED))
DOCUMENTS = RunDocuments(
    PLAN,
    task("featurize", featurized(images=7, images_per_second=70.3)),
    task("pca", projected(action="fit")),
    task("validate", validated(gates=GATES[:2]), seconds={"measure": 0.4}),
    task("publish", published()),
)


def summary(documents=DOCUMENTS, state=STATE, settings=SETTINGS):
    return summarise(documents, state, settings)


def test_a_summary_says_what_the_run_did():
    found = summary()
    assert json.loads(json.dumps(found)) == found
    assert found["objects"] == COUNTS
    assert found["ignored"]["hidden"] == {"count": 2, "examples": [".DS_Store", "Kiwi/._1.jpg"]}
    assert (found["run_id"], found["publication_id"], found["features"]) == (
        "manual__1",
        PUBLICATION.publication_id,
        1_240,
    )
    assert list(found["quarantine"].items()) == [("key_pattern", 1), ("truncated", 3)]
    assert found["featurize"] == {"images": 7, "images_per_second": 70.3, "seconds": {"get": 0.1, "infer": 1.25}}
    assert found["pca"] == {"pca_id": "pca-1", "k": 64, "n": 1_000, "explained_variance": 0.9512, "action": "fit"}
    assert found["probe"] == {"raw": 0.91, "embedded": 0.885, "pca_id": "pca-1"}
    assert [(gate["name"], gate["passed"]) for gate in found["gates"]] == [("probe", True), ("drift", False)]
    assert found["seconds"] == dict.fromkeys(("plan", "featurize", "pca", "validate", "publish"), 2.5)
    assert found["wall_seconds"] == 2.5 * 5


def test_what_waits_for_an_approval_is_no_nothing_to_do():
    question = Approval("deletions", "ab" * 32, "Remove 480 rows?", 480, "run", PUBLICATION.published_at)
    plan = task("plan", planned("manual__1", counts=IDLE, work=False, undecided=(question,)))
    text = as_text(summary(RunDocuments(plan)))
    assert f"Remove 480 rows? This waits for a person's approval. To approve: `{question.command}`" in text
    assert "Nothing to do" not in text


def test_a_job_with_a_session_started_a_jvm():
    assert summary()["jvm_started"] == 2
    assert summary(RunDocuments(PLAN))["jvm_started"] == 0


def test_a_run_with_nothing_to_do_shows_what_is_published():
    found = summary(RunDocuments(task("plan", planned("manual__1", counts=IDLE, work=False))))
    assert found["features"] == 1_240
    assert [gate["name"] for gate in found["gates"]] == [gate.name for gate in GATES]
    assert found["pca"]["action"] == "none"
    assert found["featurize"]["images"] == 0
    text = as_text(found)
    assert text.startswith("Nothing to do: every photo in the bucket is already in the tables.\n")
    assert "img/s" not in text
    assert "0 JVMs started" in text


def test_a_run_before_any_publication_says_so():
    found = summary(RunDocuments(PLAN), state=None)
    assert found["publication_id"] is None
    lines = dict(line.split(maxsplit=1) for line in as_text(found).splitlines())
    assert (lines["published"], lines["pca"], lines["quarantine"], lines["gates"]) == (
        "nothing yet",
        "none yet",
        "empty",
        "0 of 0 passed",
    )


def test_the_text_has_every_figure():
    lines = dict(line.split(maxsplit=1) for line in as_text(summary()).splitlines())
    assert lines["objects"] == "5 create, 2 update, 1 delete, 1,234 unchanged, 3 quarantined, 7 pending, 4 ignored"
    assert lines["features"] == "1,240 photos, backbone lite0-0123"
    assert lines["quarantine"] == "1 key_pattern, 3 truncated"
    assert "  ignored     hidden 2: .DS_Store, Kiwi/._1.jpg\n" in as_text(summary())
    assert lines["ignored"] == "sidecar 2: a.txt, b.txt"
    assert lines["featurize"] == "7 photos at 70 img/s (core seconds: get 0.1, infer 1.2)"
    assert lines["pca"] == "pca-1 (fit): k = 64 of n = 1,000 photos, 95.1% of the variance explained"
    assert lines["probe"] == "held-out accuracy 0.910 on features, 0.885 on embeddings, measured with pca-1"
    assert lines["gates"] == "1 of 2 passed; not: drift (warn)"
    assert lines["published"] == "pub-000003-abcdef"
    assert lines["time"] == "12.5 s, 2 JVMs started"
    assert lines["tables"] == "sqlite:////lake/catalog.db (Iceberg, namespace fruits)"


def test_the_classifier_that_the_run_fitted_and_what_it_confuses():
    confusion = Confusion((ConfusedPair("Kiwi", "Lime", 4, ("a",)),), {})
    of = RunDocuments(PLAN, pca=task("pca", projected(classified=classified(confusion=confusion))))
    found = json.loads(json.dumps(summary(of)))
    assert (found["classifier"]["classifier_id"], found["classifier"]["quality"]["n"]) == ("lda-1", 1_028)
    assert found["classifier"]["confused"] == [{"label": "Kiwi", "likeliest": "Lime", "n": 4, "keys": ["a"]}]
    assert "  classifier  lda-1: accuracy 0.995, calibration error 0.012, coverage 0.951 with 1.04" in as_text(found)
    unknown = task("pca", projected(classified=classified(quality=None)))
    assert "lda-1: too few photos to tell its quality" in as_text(summary(RunDocuments(PLAN, pca=unknown)))
    assert summary()["classifier"] is None


def test_the_catalog_is_described_without_user_and_password():
    uri = "postgresql://keeper:p%40ss-w0rd%2F@db:5432/fruits"
    settings = SETTINGS.model_copy(update={"catalog_uri": SecretStr(uri)})
    found = describe_catalog(settings)
    assert found["uri"] == found["properties"]["uri"] == "postgresql+psycopg2://db:5432/fruits"
    shown = json.dumps(summary(settings=settings)) + as_text(summary(settings=settings))
    assert [word in shown for word in ("keeper", "w0rd")] == [False, False]


@pytest.mark.parametrize("lake", ["file", "s3"])
def test_the_description_opens_the_catalog(make_settings, lake):
    from pyiceberg.catalog import load_catalog

    from fruits.lake.catalog import Lake
    from fruits.lake.schemas import TABLES

    settings = make_settings(lake)
    Lake.open(settings)
    described = describe_catalog(settings)
    catalog = load_catalog(described["name"], **described["properties"])
    assert {name for _, name in catalog.list_tables(described["namespace"])} == {table.name for table in TABLES}
