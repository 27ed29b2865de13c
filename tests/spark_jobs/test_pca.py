import numpy as np
import pyarrow as pa
import pytest

from fruits.analysis.pca import subspace_angle, transform, unexplained_share
from fruits.errors import ExitCode
from fruits.lake.catalog import Lake
from fruits.lake.pca_tables import load_statistics, load_versions
from fruits.run.documents import run_store
from fruits.run.state import WRITTEN
from fruits.spark.executors import STATISTICS_SCHEMA, merge_partials, partial_statistics
from fruits.spark.session import map_batches
from fruits.spark.statistics import FAN_IN, merged_partials
from fruits.stores import read_json, write_json
from tests.spark_jobs.equality import labels

pytestmark = [pytest.mark.jobs]

WIDTH = 1280


def matrix(rows, column="vector"):
    return np.array([row[column] for row in rows], np.float32)


def plan_again(chain, settings, **params):
    """Plan the run `r` again with other params, on which what it has featurized does not depend."""
    planned = chain.plan(settings, "r", **params)
    store, planned_at = run_store(settings, planned.key), planned.planned_at.isoformat()
    write_json(store, "featurize.json", {**read_json(store, "featurize.json"), "planned_at": planned_at})


class TestFirstFit:
    @pytest.fixture(scope="class")
    @staticmethod
    def features(chain, first):
        return chain.rows(first.settings, "features")

    @pytest.fixture(scope="class")
    @staticmethod
    def fitted(features):
        """Vectors of the fit split, float64."""
        return matrix([row for row in features if row["split"] == "train"]).astype(float)

    @pytest.fixture(scope="class")
    @staticmethod
    def version(chain, first):
        published = chain.published(first.settings)
        (version,) = load_versions(Lake.open(first.settings), published.snapshots["pca_models"], published.model_id)
        assert version.pca_id == published.pca_id
        return version

    def test_many_tasks_send_the_driver_few_moments_and_each_label_once(self, spark, features, fitted):
        rows = [{name: row[name] for name in ("key", "label", "vector")} for row in features if row["split"] == "train"]
        spread = spark.createDataFrame(pa.Table.from_pylist(rows)).repartition(20)
        of_tasks = map_batches(spread, partial_statistics(WIDTH), STATISTICS_SCHEMA)
        parts = merged_partials(of_tasks, 20, WIDTH).toArrow()
        sent = parts["label"].to_pylist()
        assert sent.count(None) <= FAN_IN
        assert sorted(filter(None, sent)) == sorted({row["label"] for row in rows})
        found = merge_partials(parts.to_batches(), WIDTH)
        centred = fitted - fitted.mean(0)
        assert found.moments.n == len(fitted) == sum(one.n for one in found.labels.values())
        np.testing.assert_allclose(found.moments.scatter, centred.T @ centred, rtol=1e-9, atol=1e-9)

    def test_labels_have_the_count_and_the_mean_of_their_photos_in_the_fit_split(self, chain, first, features):
        sums = labels(chain, first.settings)
        assert sums.keys() == {row["label"] for row in features if row["split"] == "train"}
        for label, one in sums.items():
            own = matrix([row for row in features if (row["split"], row["label"]) == ("train", label)]).astype(float)
            assert one.n == len(own)
            np.testing.assert_allclose(one.mean, own.mean(0), rtol=1e-12)

    def test_statistics_are_those_of_the_fit_split(self, chain, first, fitted):
        published = chain.published(first.settings)
        lake = Lake.open(first.settings)
        found = load_statistics(lake, published.snapshots["pca_statistics"], published.model_id, WIDTH)
        centred = fitted - fitted.mean(0)
        assert found.n == len(fitted)
        np.testing.assert_allclose(found.mean, fitted.mean(0), rtol=1e-9)
        scatter = centred.T @ centred
        assert np.linalg.norm(found.scatter - scatter) < 1e-9 * np.linalg.norm(scatter)

    def test_the_model_is_scikit_learns_on_the_fit_split(self, fitted, version):
        from sklearn.decomposition import PCA

        theirs = PCA(0.95, svd_solver="full").fit(fitted)
        assert version.pca.components.shape == theirs.components_.shape
        assert subspace_angle(version.pca.components, theirs.components_) < 1e-6
        np.testing.assert_allclose(version.pca.explained_variance_ratio, theirs.explained_variance_ratio_, rtol=1e-9)

    def test_every_feature_has_its_projection(self, chain, first, features, version):
        rows = chain.rows(first.settings, "embeddings")
        identity = ("key", "etag", "label", "split", "model_id", "run_id")
        assert [[row[name] for name in identity] for row in rows] == [
            [row[name] for name in identity] for row in features
        ]
        assert {row["pca_id"] for row in rows} == {version.pca_id}
        embedding, residual = transform(version.pca, matrix(features))
        assert matrix(rows, "embedding").tobytes() == embedding.tobytes()
        assert matrix(rows, "residual").tobytes() == residual.tobytes()

    def test_the_card_says_on_what_and_why_it_was_fitted(self, chain, first, features, fitted, version):
        published = chain.published(first.settings)
        held_out = matrix([row for row in features if row["split"] != "train"])
        assert (version.pca.n, version.reason, version.run_id) == (len(fitted), "first fit", first.run_id)
        assert version.n_components == "0.95 of the variance, at most 160"
        assert version.features_snapshot_id == published.snapshots["features"]
        expected = unexplained_share(*transform(version.pca, held_out))
        assert version.held_out_unexplained == pytest.approx(expected, rel=1e-6)
        assert Lake.open(first.settings).read("pca_models", None)["fit_split"].to_pylist() == ["train"]

    def test_the_document_says_what_was_done(self, first, features, fitted, version):
        document = first.documents.pca
        result = document.result
        assert (document.state, result.action, result.reason) == ("succeeded", "fit", "first fit")
        assert (result.pca_id, result.k) == (version.pca_id, version.pca.n_components)
        assert (result.n, result.n_statistics) == (len(fitted), len(fitted))
        assert result.projected == len(features)
        assert result.drift is None
        assert result.recomputed is False
        assert result.explained_variance_ratio == tuple(version.pca.explained_variance_ratio)
        assert {"session", "moments", "fit", "project"} <= set(document.seconds)

    def test_the_document_names_the_snapshots_that_are_published(self, chain, first):
        snapshots, result = chain.published(first.settings).snapshots, first.documents.pca.result
        assert result.read == {name: snapshots[name] for name in ("features", "quarantine")}
        assert result.wrote == {name: snapshots[name] for name in WRITTEN["pca"]}


@pytest.fixture(scope="module")
def featurized(chain, new_settings):
    """Settings of a run `r` that featurized eight photos, two of them held out."""
    settings = new_settings()
    chain.put(settings, chain.photos(8))
    chain.plan(settings, "r")
    assert chain.submit("featurize", settings, "r") == ExitCode.OK
    return settings


class TestBadInput:
    def refused(self, chain, settings, caplog, **params):
        """What the job says when it is asked for something that it cannot do; readers stay where they are."""
        before = chain.heads(settings)
        plan_again(chain, settings, **params)
        assert chain.submit("pca", settings, "r") == ExitCode.BAD_INPUT
        (line,) = [
            record.getMessage() for record in caplog.records if record.levelname == "ERROR" and record.name == "fruits"
        ]
        document = chain.documents(settings, "r").pca
        assert (document.state, document.retryable, document.error) == ("failed", False, line)
        assert chain.heads(settings) == before
        return line

    def test_more_components_than_the_photos_allow(self, chain, featurized, caplog):
        line = self.refused(chain, featurized, caplog, n_components=500)
        assert "500 components were requested, but the fit split has 6 photos" in line
        assert "FRUITS_N_COMPONENTS to at most 5" in line

    def test_a_model_to_keep_where_there_is_none(self, chain, featurized, caplog):
        assert "`never`, but no PCA has been published" in self.refused(chain, featurized, caplog, refit="never")

    def test_a_vector_that_is_not_a_number_is_named_and_stops_the_run(self, chain, featurized, caplog):
        spoilt = next(row for row in chain.branch_rows(featurized, "r", "features") if row["split"] == "train")
        vector = [np.nan, *spoilt["vector"][1:]]
        with chain.written_otherwise(featurized, "r", "features", spoilt["key"], [{**spoilt, "vector": vector}]):
            line = self.refused(chain, featurized, caplog)
        assert f"the vector of {spoilt['key']} has NaN or infinity" in line
        assert "Nothing is published" in line


@pytest.fixture(scope="module")
def published(chain, new_settings):
    """Settings of a run `r`, published after its PCA was done twice, and the publication."""
    settings = new_settings()
    chain.put(settings, chain.photos(8))
    chain.plan(settings, "r")
    for job in ("featurize", "pca", "pca", "validate"):
        assert chain.submit(job, settings, "r") == ExitCode.OK
    return settings, chain.publish(settings, "r")


def test_a_retry_doubles_nothing(chain, published):
    settings, publication = published
    assert chain.documents(settings, "r").pca.attempt == 2
    assert len(chain.rows(settings, "embeddings")) == 8
    assert [row["pca_id"] for row in chain.rows(settings, "pca_models")] == [publication.pca_id]
    assert [row["n"] for row in chain.rows(settings, "pca_statistics")] == [6]


def test_a_held_out_photo_has_no_part_in_the_fit_and_the_same_fit_again_replaces_its_embeddings(chain, published):
    """Only a held-out photo is new: a refit on the same fit split is the same version."""
    settings, publication = published
    chain.put(settings, {"Test/Kiwi/new.img": chain.photo(90)})
    chain.plan(settings, "held-out", refit="always")
    for job in ("featurize", "pca"):
        assert chain.submit(job, settings, "held-out") == ExitCode.OK
    result = chain.documents(settings, "held-out").pca.result
    assert (result.action, result.reason, result.pca_id) == ("fit", "asked for", publication.pca_id)
    rows = chain.branch_rows(settings, "held-out", "embeddings")
    assert len({row["key"] for row in rows}) == len(rows) == 9 == result.projected
    assert {row["pca_id"] for row in rows} == {publication.pca_id}
    (card,) = chain.branch_rows(settings, "held-out", "pca_models")
    assert (card["run_id"], card["reason"]) == ("held-out", "asked for")
