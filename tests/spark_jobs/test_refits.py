"""Refits that nobody asked for: one that fails its gates, what is remembered of it, and a split that changed."""

from types import SimpleNamespace

import pytest

from fruits.analysis.gates import failed
from tests.spark_jobs.equality import labels

pytestmark = [pytest.mark.jobs]


@pytest.fixture(scope="module")
def seen(chain, new_settings):
    """Four runs on one lake: a fit; a refit by growth whose few components explain too little, on a lake without sums
    by label; one more photo; and one under other rules of the split. Has each run's documents, publication and rows.
    """
    settings = new_settings(min_probe_ratio=0, max_components=2, min_explained_variance=0)
    seen = SimpleNamespace(settings=settings, documents={}, published={}, embeddings={})

    def run(settings, run_id, photos):
        chain.put(settings, photos)
        seen.documents[run_id] = chain.run(settings, run_id)
        seen.published[run_id] = chain.published(settings)
        seen.embeddings[run_id] = chain.rows(settings, "embeddings")

    with pytest.MonkeyPatch.context() as patch:  # as by a release without sums by label
        patch.setattr("fruits.spark.statistics.update_labels", lambda *_: None)
        run(settings, "first", chain.photos(6))
    assert chain.rows(settings, "label_statistics") == []
    explained = seen.documents["first"].pca.result.explained_variance
    strict = settings.model_copy(update={"min_explained_variance": explained})
    run(strict, "grown", chain.photos(12, start=6))
    run(strict, "later", {"Training/Kiwi/later.img": chain.photo(90)})
    run(settings.model_copy(update={"holdout_share": 0.5}), "other split", {"Training/Kiwi/last.img": chain.photo(91)})
    return seen


def test_a_refit_that_fails_its_gates_is_not_published_and_the_run_is(seen):
    first, grown = seen.published["first"], seen.published["grown"]
    documents = seen.documents["grown"]
    assert (documents.pca.result.action, documents.pca.result.keep) == ("fit", first.pca_id)
    assert grown.pca_id == documents.validate.result.pca_id == first.pca_id != documents.pca.result.pca_id
    assert failed(grown.gates) == ()
    (gate,) = [gate for gate in grown.gates if gate.name == "refit"]
    assert (gate.severity, gate.passed) == ("warn", False)
    assert f"{documents.pca.result.pca_id} is not published, and readers keep {first.pca_id}" in gate.detail
    assert "explained_variance: " in gate.detail
    assert (first.probe_rows, grown.probe_rows) == (1, 4), "the kept version's probe, on four times as many photos"


def test_readers_find_every_photo_under_the_version_that_they_keep(seen):
    for run, photos in (("first", 6), ("grown", 18), ("later", 19)):
        rows = [row["key"] for row in seen.embeddings[run] if row["pca_id"] == seen.published[run].pca_id]
        assert len(rows) == len(set(rows)) == photos


def test_a_refused_refit_is_not_tried_again_at_once(seen, caplog):
    result = seen.documents["later"].pca.result
    assert (result.action, result.pca_id) == ("project", seen.published["first"].pca_id)


def test_other_rules_of_the_split_are_a_reason_to_refit_and_to_measure_the_probe_again(seen):
    result, published = seen.documents["other split"].pca.result, seen.published["other split"]
    assert (result.action, result.keep) == ("fit", None)
    assert "the rules of the split changed from" in result.reason
    assert "holdout share 0.5" in result.reason
    assert published.pca_id == result.pca_id != seen.published["first"].pca_id
    assert published.probe_rows > seen.published["first"].probe_rows


def test_a_lake_without_sums_by_label_gets_them_with_its_next_refit(chain, seen):
    assert {label: one.n for label, one in labels(chain, seen.settings).items()} == {
        "Apple Red": 4, "Banana": 5, "Kiwi": 7,
    }  # fmt: skip
