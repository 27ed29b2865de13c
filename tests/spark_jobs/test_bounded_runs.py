"""Runs that leave objects over, as those of a backfill do: no refit in each, and a new backbone beside the old.

The new backbone is the default one's twin under another name: what it makes must be the same.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from fruits.backbones.card import model_id as identity_of
from fruits.backbones.stage import _registry_path, read_card
from fruits.lake.approvals import approve, read_approvals
from fruits.lake.catalog import Lake
from fruits.lake.publication import publications
from fruits.run.request import RunRequest
from fruits.steps.plan import effective_backbone
from fruits.steps.prepare import with_backbone
from fruits.stores import lake_store, read_bytes, write_bytes, write_json

pytestmark = [pytest.mark.jobs]

TWIN = {"backbone": "MobileNetV2"}


def add_twin(settings, model_id):
    """Stage a copy of a backbone as the one of ``TWIN``; returns its identity."""
    store, card = lake_store(settings, "models"), read_card(settings, model_id)
    flatbuffer = read_bytes(store, f"{model_id}/model.tflite")
    identity = identity_of(TWIN["backbone"], flatbuffer, card.preprocessing)
    twin = replace(card, model_id=identity, backbone=TWIN["backbone"])
    write_bytes(store, f"{twin.model_id}/model.tflite", flatbuffer)
    write_json(store, f"{twin.model_id}/card.json", twin.to_document())
    asked = with_backbone(settings, RunRequest(prefix="", **TWIN))
    write_json(store, _registry_path(asked), {"model_id": twin.model_id})
    return twin.model_id


def test_runs_that_leave_photos_over_refit_once_at_the_end_by_the_drift_of_them_all(chain, new_settings):
    """Neither run has seven new photos; the first that leaves photos over has as many as a drift needs.

    The refit is of more rows than need no approval: the last run keeps the PCA, and the run after the approval refits.
    """
    settings = new_settings(
        min_probe_ratio=0, refit_drift=0.001, refit_drift_rows=4, refit_growth=100, approval_rows=12
    )
    chain.put(settings, chain.photos(12))
    chain.run(settings, "first")
    chain.put(settings, {f"Training/Orange/{number}.img": chain.photo(number, "Orange") for number in range(7)})
    some, rest = (chain.run(settings, run_id, limit=limit) for run_id, limit in (("some", 4), ("rest", None)))
    assert [documents.planned.remaining for documents in (some, rest)] == [3, 0]
    assert some.pca.result.action == "project"
    assert some.pca.result.drift > 0.001, "it would have refitted, had it left nothing over"
    (question,) = rest.pca.result.undecided
    assert (rest.pca.result.action, question.details["reasons"][0].split(" new photos")[0]) == ("project", "7")
    assert chain.published(settings).pca_id == rest.pca.result.pca_id == some.pca.result.pca_id

    decision = approve(settings, question, by="ada", why="another camera", via="fruits approve")
    approved = chain.run(settings, "approved")
    assert (approved.pca.result.action, approved.pca.result.reason) == ("fit", "approved by ada: another camera")
    assert (chain.published(settings).approvals, read_approvals(settings)) == ((decision,), [])
    versions = chain.rows(settings, "pca_models")
    assert max(version["n"] for version in versions) == 9 + 7, "the fit split of all"


@pytest.fixture(scope="module")
def history(chain, new_settings):
    """A published lake; a backfill of a new backbone in two runs with a sweep between them; then the way back, in two
    runs as well, with three photos more.

    Has the settings, the cards of both backbones, and the publication, the documents and the rows of each run.
    """
    settings = new_settings(min_probe_ratio=0)
    photos = chain.photos(10)
    chain.put(settings, photos)
    seen = SimpleNamespace(settings=settings, documents={}, features={}, embeddings={})

    def run(run_id, **params):
        seen.documents[run_id] = chain.run(settings, run_id, **params)
        seen.features[run_id] = chain.rows(settings, "features")
        seen.embeddings[run_id] = chain.rows(settings, "embeddings", pca_id=chain.published(settings).pca_id)

    run("old")
    old = chain.published(settings).model_id
    twin = add_twin(settings, old)
    seen.old, seen.twin = read_card(settings, old), read_card(settings, twin)
    chain.put(settings, chain.photos(2, start=10))
    run("half", **TWIN, keys=list(photos)[:6])
    run("sweep")
    run("rest", **TWIN)
    seen.idle = chain.plan(settings, "idle")
    chain.put(settings, chain.photos(3, start=12))
    run("back 1", backbone=settings.backbone, limit=2)
    run("back 2", backbone=settings.backbone)
    seen.published = {publication.run_id: publication for publication in publications(Lake.open(settings))}
    return seen


def test_a_new_backbone_is_built_beside_the_one_that_readers_use(history):
    old, half, sweep = (history.published[run] for run in ("old", "half", "sweep"))
    named = [history.published[run].building for run in ("old", "half", "sweep", "rest")]
    assert named == [None, history.twin.model_id, history.twin.model_id, None]
    assert (half.model_id, half.pca_id, half.probe_raw) == (old.model_id, old.pca_id, old.probe_raw)
    assert half.counts["features"] == old.counts["features"] == 10
    documents = history.documents["half"]
    assert documents.planned.building
    assert documents.planned.remaining == 6
    assert documents.pca.result.action == "none"
    assert half.snapshots["embeddings"] == old.snapshots["embeddings"]
    assert sweep.model_id == old.model_id != history.twin.model_id
    assert sweep.counts["features"] == 12, "the old backbone is kept up meanwhile"


def test_readers_switch_when_the_new_backbone_is_complete(history):
    old, twin, rest = history.old.model_id, history.twin.model_id, history.published["rest"]
    assert rest.model_id == twin
    assert rest.counts["features"] == 12
    documents = history.documents["rest"]
    assert documents.planned.counts["create"] == 6, "what the first half did is not done again"
    assert documents.pca.result.action == "fit"
    vectors = {
        model_id: {row["key"]: row["vector"] for row in history.features["rest"] if row["model_id"] == model_id}
        for model_id in (old, twin)
    }
    assert vectors[twin] == vectors[old]
    assert {row["key"] for row in history.embeddings["rest"]} == vectors[twin].keys()


def test_a_sweep_does_not_take_readers_back_to_the_backbone_they_left(history):
    assert (history.idle.model_id, history.idle.work) == (history.twin.model_id, False)
    published = [history.published[run] for run in ("old", "half", "sweep", "rest")]
    asked = RunRequest(prefix="", backbone=history.settings.backbone)
    assert effective_backbone(history.settings, asked, published) == history.old, "asked for, it does"


def test_readers_go_back_in_bounded_runs_too(history):
    """The old backbone has a PCA version already; what its building runs made is projected on it."""
    back = [history.documents[run] for run in ("back 1", "back 2")]
    assert [documents.planned.building for documents in back] == [True, False]
    now = history.published["back 2"]
    assert (now.model_id, now.counts["features"]) == (history.old.model_id, 15)
    assert len(history.embeddings["back 2"]) == 15
