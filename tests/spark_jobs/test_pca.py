from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.expressions import In
from sklearn.decomposition import PCA

from fruits.analysis.pca import subspace_angle, transform, unexplained_share
from fruits.errors import ExitCode
from fruits.lake.branches import branch_name, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.pca_tables import load_statistics, load_versions
from fruits.lake.publication import run_head
from fruits.lake.schemas import FEATURES
from fruits.run.documents import run_store
from fruits.run.state import run_key
from fruits.stores import read_json, write_json

pytestmark = [pytest.mark.jobs]

WIDTH = 1280


def matrix(rows, column="vector"):
    return np.array([row[column] for row in rows], np.float32)


def on_branch(settings, document):
    """Statistics and PCA versions as a run has them."""
    lake = Lake.open(settings)
    statistics, models = (run_head(lake, name, document) for name in ("pca_statistics", "pca_models"))
    model_id = document["model_id"]
    return load_statistics(lake, statistics, model_id, WIDTH), load_versions(lake, models, model_id)


def plan_again(chain, settings, **params):
    """Plan the run `r` again with other params, on which what it has featurized does not depend."""
    plan = chain.plan(settings, "r", **params)
    store = run_store(settings, plan["slug"])
    write_json(store, "featurize.json", {**read_json(store, "featurize.json"), "planned_at": plan["started_at"]})


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
        document = first.documents["pca"]
        assert (document["state"], document["action"], document["reason"]) == ("succeeded", "fit", "first fit")
        assert (document["pca_id"], document["k"]) == (version.pca_id, version.pca.n_components)
        assert (document["n"], document["n_statistics"]) == (len(fitted), len(fitted))
        assert document["projected"] == len(features)
        assert document["drift"] is None
        assert document["recomputed"] is False
        assert document["explained_variance_ratio"] == list(version.pca.explained_variance_ratio)
        assert {"session", "moments", "fit", "project"} <= set(document["seconds"])


def test_held_out_photos_have_no_part_in_the_fit(chain, first, new_settings):
    """The same fit split with other held-out photos, and more of them, gives the same model."""
    settings = new_settings()
    photos = {key: data for key, data in first.photos.items() if key.startswith("Training/")}
    held_out = {f"Test/Banana/{number}.img": chain.photo(number, "Kiwi") for number in range(60, 72)}
    chain.put(settings, {**photos, **held_out})
    plan = chain.plan(settings, "r")
    for job in ("featurize", "pca"):
        assert chain.submit(job, settings, "r") == ExitCode.OK
    statistics, (version,) = on_branch(settings, plan)
    published = chain.published(first.settings)
    lake = Lake.open(first.settings)
    expected = load_statistics(lake, published.snapshots["pca_statistics"], published.model_id, WIDTH)
    (theirs,) = load_versions(lake, published.snapshots["pca_models"], published.model_id)
    assert statistics.n == expected.n
    np.testing.assert_allclose(statistics.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(version.pca.explained_variance, theirs.pca.explained_variance, rtol=1e-9)
    assert subspace_angle(version.pca.components, theirs.pca.components) < 1e-8
    assert version.held_out_unexplained != theirs.held_out_unexplained


@pytest.fixture(scope="module")
def featurized(chain, new_settings):
    """Settings of a run `r` that featurized eight photos, two of them held out."""
    settings = new_settings()
    chain.put(settings, chain.photos(8))
    chain.plan(settings, "r")
    assert chain.submit("featurize", settings, "r") == ExitCode.OK
    return settings


@contextmanager
def replaced(settings, run_id, rows):
    """Inside, some feature rows on a run's branch are others."""
    lake, branch = Lake.open(settings), branch_name(run_key(run_id))
    before, table = lake.head("features", branch), pa.Table.from_pylist(rows, schema=FEATURES.schema)
    lake.table("features").overwrite(table, In("key", table["key"].to_pylist()), branch=branch)
    try:
        yield
    finally:
        start_branch(lake, "features", branch, before)


class TestBadInput:
    def refused(self, chain, featurized, caplog, **params):
        """What the job says when it is asked for something that it cannot do; the features stay those of `r`."""
        settings = featurized
        before = chain.heads(settings)
        plan_again(chain, settings, **params)
        assert chain.submit("pca", settings, "r") == ExitCode.BAD_INPUT
        (line,) = [
            record.getMessage() for record in caplog.records if record.levelname == "ERROR" and record.name == "fruits"
        ]
        document = chain.documents(settings, "r")["pca"]
        assert (document["state"], document["mendable"], document["error"]) == ("failed", True, line)
        assert chain.heads(settings) == before
        return line

    def test_more_components_than_the_photos_allow(self, chain, featurized, caplog):
        line = self.refused(chain, featurized, caplog, n_components=500)
        assert "500 components were asked for, but the fit split has 6 photos" in line
        assert "FRUITS_N_COMPONENTS to at most 5" in line

    def test_a_model_to_keep_where_there_is_none(self, chain, featurized, caplog):
        assert "`never`, but no PCA has been published" in self.refused(chain, featurized, caplog, refit="never")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_vector_that_is_not_a_number_is_named_and_stops_the_run(self, chain, featurized, caplog, value):
        settings = featurized
        spoilt = chain.branch_rows(settings, "r", "features")[2]
        spoilt["vector"][7] = value
        with replaced(settings, "r", [spoilt]):
            line = self.refused(chain, featurized, caplog)
        assert f"the vector of {spoilt['key']} has NaN or infinity" in line
        assert "Nothing is published" in line


class TestAgain:
    @pytest.fixture(scope="class")
    @staticmethod
    def published(chain, featurized):
        """The run `r`, published, after its PCA was done twice."""
        settings = featurized
        plan_again(chain, settings)
        for job in ("pca", "pca", "validate"):
            assert chain.submit(job, settings, "r") == ExitCode.OK
        return settings, chain.publish(settings, "r")

    def test_a_retry_doubles_nothing(self, chain, published):
        settings, publication = published
        assert chain.documents(settings, "r")["pca"]["attempt"] > 1
        assert len(chain.rows(settings, "embeddings")) == 8
        assert [row["pca_id"] for row in chain.rows(settings, "pca_models")] == [publication.pca_id]
        assert [row["n"] for row in chain.rows(settings, "pca_statistics")] == [6]

    def test_the_same_fit_again_replaces_its_embeddings(self, chain, published):
        """Only a held-out photo is new: a refit on the same fit split is the same version."""
        settings, publication = published
        chain.put(settings, {"Test/Kiwi/new.img": chain.photo(90)})
        chain.plan(settings, "held-out", refit="always")
        for job in ("featurize", "pca"):
            assert chain.submit(job, settings, "held-out") == ExitCode.OK
        document = chain.documents(settings, "held-out")["pca"]
        assert (document["action"], document["reason"], document["pca_id"]) == ("fit", "asked for", publication.pca_id)
        rows = chain.branch_rows(settings, "held-out", "embeddings")
        assert len({row["key"] for row in rows}) == len(rows) == 9 == document["projected"]
        assert {row["pca_id"] for row in rows} == {publication.pca_id}
        (card,) = chain.branch_rows(settings, "held-out", "pca_models")
        assert (card["run_id"], card["reason"]) == ("held-out", "asked for")
