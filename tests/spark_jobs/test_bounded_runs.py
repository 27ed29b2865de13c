"""Runs that leave objects over, as those of a backfill do: no refit in each, and a new backbone beside the old.

The new backbone is the default one's twin under another name: what it makes must be the same.
"""

from dataclasses import replace

import pytest

from fruits.backbones.card import model_id as identity_of
from fruits.backbones.stage import _registry_path, read_card
from fruits.lake.catalog import Lake
from fruits.lake.publication import publications
from fruits.run.request import RunRequest
from fruits.steps.plan import plan_run
from fruits.steps.prepare import prepare, with_backbone
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
    asked = with_backbone(settings, RunRequest("", **TWIN))
    write_json(store, _registry_path(asked), {"model_id": twin.model_id})
    return twin.model_id


def test_runs_that_leave_photos_over_refit_once_at_the_end(chain, new_settings):
    settings = new_settings(min_probe_ratio=0)
    chain.put(settings, chain.photos(24))
    actions = []
    for number in range(3):
        documents = chain.run(settings, f"run {number}", limit=8)  # 6 are held out, whichever come first
        actions.append((documents["plan"]["remaining"], documents["pca"]["action"]))
    assert actions == [(16, "fit"), (8, "project"), (0, "fit")]
    versions = chain.rows(settings, "pca_models")
    assert len(versions) == 2
    assert max(version["n"] for version in versions) == 18, "the fit split of 24 photos"


def test_a_drift_that_no_run_saw_alone_is_seen_by_the_one_that_leaves_nothing_over(chain, new_settings):
    settings = new_settings(min_probe_ratio=0, refit_drift=0.001, refit_drift_rows=6, refit_growth=100)
    chain.put(settings, chain.photos(12))
    chain.run(settings, "first")
    chain.put(settings, {f"Training/Orange/{number}.img": chain.photo(number, "Orange") for number in range(7)})
    kept, last = chain.run(settings, "some", limit=4)["pca"], chain.run(settings, "rest")["pca"]
    assert kept["action"] == "project"
    assert (last["action"], last["reason"].split(" new photos")[0]) == ("fit", "7")


@pytest.fixture(scope="module")
def history(chain, new_settings):
    """A published lake, then a backfill of a new backbone in two runs with a sweep between them.

    Gives the settings, the twin's identity, the publication after each run, and the documents of each.
    """
    settings = new_settings(min_probe_ratio=0)
    photos = chain.photos(16)
    chain.put(settings, photos)
    chain.run(settings, "old")
    twin = add_twin(settings, chain.published(settings).model_id)
    chain.put(settings, chain.photos(2, start=16))
    steps = {"half": {**TWIN, "keys": list(photos)[:9]}, "sweep": {}, "rest": TWIN}
    documents = {run_id: chain.run(settings, run_id, **params) for run_id, params in steps.items()}
    return settings, twin, {one.run_id: one for one in publications(Lake.open(settings))}, documents


def test_a_new_backbone_is_built_beside_the_one_that_readers_use(history):
    _, twin, published, documents = history
    old, half, sweep = published["old"], published["half"], published["sweep"]
    assert (half.model_id, half.pca_id, half.probe_raw) == (old.model_id, old.pca_id, old.probe_raw)
    assert half.counts["features"] == old.counts["features"] == 16
    assert documents["half"]["plan"]["building"]
    assert documents["half"]["plan"]["remaining"] == 9
    assert documents["half"]["pca"]["action"] == "none"
    assert half.snapshots["embeddings"] == old.snapshots["embeddings"]
    assert sweep.model_id == old.model_id != twin
    assert sweep.counts["features"] == 18, "the old backbone is kept up meanwhile"


def test_readers_switch_when_the_new_backbone_is_complete(chain, history):
    settings, twin, published, documents = history
    rest = published["rest"]
    assert rest.model_id == twin
    assert rest.counts["features"] == 18
    assert documents["rest"]["plan"]["counts"]["create"] == 9, "what the first half did is not done again"
    assert documents["rest"]["pca"]["action"] == "fit"
    vectors = {
        model_id: {row["key"]: row["vector"] for row in chain.rows(settings, "features", model_id=model_id)}
        for model_id in (published["old"].model_id, twin)
    }
    assert vectors[twin] == vectors[published["old"].model_id]
    embeddings = chain.rows(settings, "embeddings", pca_id=rest.pca_id)
    assert {row["key"] for row in embeddings} == vectors[twin].keys()


def test_a_sweep_does_not_take_readers_back_to_the_backbone_they_left(history):
    settings, twin, published, _ = history
    assert prepare(settings, RunRequest("")).model_id == twin
    asked = RunRequest("", backbone=settings.backbone)
    assert prepare(settings, asked).model_id == published["old"].model_id, "asked for, it does"


def test_nor_does_one_that_was_prepared_before_they_left(chain, history):
    """It waited for its turn meanwhile, or was cleared."""
    settings, twin, published, _ = history
    before = read_card(settings, published["old"].model_id)
    planned = plan_run(settings, RunRequest(""), before, "prepared before")
    assert (planned["model_id"], planned["work"]) == (twin, False)
    chain.lapse(settings)


def test_readers_go_back_in_bounded_runs_too(chain, history):
    """Last in this file. The old backbone has a PCA version already; what its building runs made is projected on it."""
    settings, _, published, _ = history
    chain.put(settings, chain.photos(3, start=18))
    back = [
        chain.run(settings, f"back {n}", backbone=settings.backbone, limit=limit) for n, limit in ((1, 2), (2, None))
    ]
    assert [documents["plan"]["building"] for documents in back] == [True, False]
    now = chain.published(settings)
    assert (now.model_id, now.counts["features"]) == (published["old"].model_id, 21)
    assert len(chain.rows(settings, "embeddings", pca_id=now.pca_id)) == 21
