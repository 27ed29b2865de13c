import csv

import numpy as np
import pyarrow.parquet as pq
import pytest

from fruits.errors import FruitsError
from fruits.lake import catalog
from fruits.lake.catalog import Lake
from fruits.serve import formats
from fruits.serve.export import FORMATS, export
from fruits.settings import Settings
from tests.runs import plane

pytestmark = pytest.mark.jobs

MODEL = "backbone-1"
RNG = np.random.default_rng(0)
PHOTOS = {
    f"{split}/{label}/{n}.jpg": RNG.normal(size=6).astype(np.float32)
    for label in ("Kiwi", '=Fig "x", dried')
    for split in ("train", "test")
    for n in range(10)
}
QUARANTINED = ['=HYPERLINK("http://x")', "+1", "-1", "@x", "\uff1d1", "a,b.jpg"]


@pytest.fixture(scope="module")
def lake(tmp_path_factory, fake_run):
    """Settings of a lake with a publication; rows of another backbone and of a later run beside it."""
    folder = tmp_path_factory.mktemp("lake")
    settings = Settings.load(lake=f"file://{folder}/lake", catalog_uri=f"sqlite:///{folder}/catalog.db")
    run = fake_run(settings)
    run.write({f"other/{key}": vector[:3] for key, vector in PHOTOS.items() if "train" in key}, "a", pca=plane())
    pca_id = run.write(PHOTOS, MODEL)
    run.quarantine(QUARANTINED, MODEL)
    run.publish(MODEL, pca_id)
    later = fake_run(settings)
    later.branch = "main"  # of a table may be ahead of the publication that a reader has
    later.write({"train/Later/1.jpg": PHOTOS["train/Kiwi/1.jpg"]}, MODEL, pca=plane(6))
    return settings


def spelled(path):
    """A CSV file as header and rows by key, after the first letter of a safe text."""
    with path.open(newline="") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


class TestParquet:
    @pytest.mark.parametrize(("table", "column"), [("features", "vector"), ("embeddings", "embedding")])
    def test_it_has_the_published_rows_as_they_are(self, lake, publication, tmp_path, table, column):
        done = export(lake, table, tmp_path / "x.parquet", "parquet")
        found = pq.read_table(done.path)
        belong = {"features": {"model_id": MODEL}, "embeddings": {"pca_id": publication.pca_id}}[table]
        expected = Lake.open(lake).read(table, publication.snapshots[table], **belong)
        assert found.sort_by("key").to_pylist() == expected.sort_by("key").to_pylist()
        assert (done.rows, done.bytes) == (len(PHOTOS), done.path.stat().st_size)
        if table == "features":
            assert {row["key"]: row["vector"] for row in found.to_pylist()} == {
                key: vector.tolist() for key, vector in PHOTOS.items()
            }

    def test_it_says_which_publication_it_is_of(self, lake, publication, tmp_path):
        done = export(lake, "quarantine", tmp_path / "x.parquet", "parquet")
        origin = {key.decode(): value.decode() for key, value in pq.read_schema(done.path).metadata.items()}
        assert done.publication_id == origin["fruits.publication_id"] == publication.publication_id
        assert (origin["fruits.model_id"], origin["fruits.pca_id"]) == (MODEL, publication.pca_id)

    def test_the_pca_is_that_of_the_backbone(self, lake, publication, tmp_path):
        (row,) = pq.read_table(export(lake, "pca_models", tmp_path / "x", "parquet").path).to_pylist()
        assert (row["pca_id"], np.shape(row["components"])[1]) == (publication.pca_id, 6)

    def test_batches_change_nothing_and_progress_is_told(self, lake, tmp_path, monkeypatch):
        whole = pq.read_table(export(lake, "features", tmp_path / "whole", "parquet").path)
        monkeypatch.setattr(catalog, "_BATCH_ROWS", 7)
        told = []
        done = export(lake, "features", tmp_path / "x", "parquet", progress=lambda *counts: told.append(counts))
        assert pq.read_table(done.path).equals(whole)
        assert told == [(count, 40) for count in (0, 7, 14, 21, 28, 35, 40)]


class TestCsv:
    def test_numbers_come_back_exactly_and_texts_whole(self, lake, publication, tmp_path):
        rows = spelled(export(lake, "features", tmp_path / "x.csv", "csv").path)
        assert rows.keys() == PHOTOS.keys()
        for key, vector in PHOTOS.items():
            assert np.array([rows[key][f"v{n}"] for n in range(6)], dtype=np.float32).tolist() == vector.tolist()
            assert rows[key]["publication_id"] == publication.publication_id
        assert {row["label"] for row in rows.values()} == {"Kiwi", '\'=Fig "x", dried'}

    def test_no_text_is_a_formula_to_a_spreadsheet(self, lake, tmp_path):
        rows = spelled(export(lake, "quarantine", tmp_path / "x.csv", "csv").path)
        assert set(rows) == {*(f"'{key}" for key in QUARANTINED[:5]), "a,b.jpg"}
        assert {row["detail"] for row in rows.values()} == {'a "word", a comma\nand a line'}


class TestNpz:
    def test_it_is_ready_for_scikit_learn(self, lake, publication, tmp_path):
        from sklearn.neighbors import KNeighborsClassifier

        done = export(lake, "features", tmp_path / "x.npz", "npz")
        with np.load(done.path) as found:
            assert {key: vector.tolist() for key, vector in zip(found["keys"], found["X"], strict=True)} == {
                key: vector.tolist() for key, vector in PHOTOS.items()
            }
            assert found["X"].dtype == np.float32
            assert [f"{split}/{label}" for split, label in zip(found["splits"], found["labels"], strict=True)] == [
                key.rpartition("/")[0] for key in found["keys"]
            ]
            assert (str(found["publication_id"]), str(found["model_id"])) == (publication.publication_id, MODEL)
            assert KNeighborsClassifier(1).fit(found["X"], found["labels"]).score(found["X"], found["labels"]) == 1

    @pytest.mark.parametrize("most", [40 * 6 * 4 - 1, 40 * 6 * 4 + 1], ids=["matrix", "texts"])
    def test_too_large_a_matrix_is_refused_with_a_way_out(self, lake, tmp_path, monkeypatch, most):
        monkeypatch.setattr(formats, "MAX_NPZ_BYTES", most)
        with pytest.raises(FruitsError, match="parquet"):
            export(lake, "features", tmp_path / "x.npz", "npz")
        assert list(tmp_path.iterdir()) == []


class TestTarget:
    @pytest.mark.parametrize("kind", ["parquet", "csv"])
    def test_a_file_that_is_there_stays_unless_it_may_go(self, lake, tmp_path, kind):
        target = tmp_path / "x"
        target.write_text("mine")
        with pytest.raises(FruitsError, match="exists already"):
            export(lake, "quarantine", target, kind)
        assert target.read_text() == "mine"
        export(lake, "quarantine", target, kind, overwrite=True)
        assert target.read_bytes() != b"mine"

    def test_what_breaks_off_leaves_nothing_and_the_old_file_as_it_was(self, lake, tmp_path):
        target = tmp_path / "x"
        target.write_text("mine")

        def stop(done, total):
            if done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            export(lake, "features", target, "parquet", overwrite=True, progress=stop)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "mine")]

    def test_nothing_is_visible_under_the_name_before_the_end(self, lake, tmp_path):
        seen = []
        export(lake, "features", tmp_path / "x", "csv", progress=lambda *_: seen.append((tmp_path / "x").exists()))
        assert set(seen) == {False}
        assert [path.name for path in tmp_path.iterdir()] == ["x"]

    def test_a_folder_and_a_missing_folder_are_refused(self, lake, tmp_path):
        with pytest.raises(FruitsError, match="is a folder"):
            export(lake, "features", tmp_path, "parquet", overwrite=True)
        with pytest.raises(FruitsError, match="no folder"):
            export(lake, "features", tmp_path / "a" / "b", "parquet")

    def test_a_disk_that_does_not_take_it_is_named(self, lake, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setitem(formats.WRITERS, "parquet", full)
        with pytest.raises(FruitsError, match=r"x: not written: .*No space"):
            export(lake, "features", tmp_path / "x", "parquet")


class TestAsked:
    def test_an_unknown_table_lists_those_there_are(self, lake, tmp_path):
        with pytest.raises(FruitsError, match="publications.*features, embeddings, quarantine, pca_models"):
            export(lake, "publications", tmp_path / "x", "parquet")

    @pytest.mark.parametrize(("table", "kind"), [("quarantine", "npz"), ("pca_models", "csv"), ("features", "xlsx")])
    def test_an_unknown_format_lists_those_there_are(self, lake, tmp_path, table, kind):
        with pytest.raises(FruitsError, match=" or ".join(FORMATS[table])):
            export(lake, table, tmp_path / "x", kind)

    def test_an_empty_lake_says_what_to_do(self, folder_lake, tmp_path):
        Lake.open(folder_lake)
        with pytest.raises(FruitsError, match="nothing has been published"):
            export(folder_lake, "features", tmp_path / "x", "parquet")

    @pytest.mark.parametrize("kind", ["parquet", "csv", "npz"])
    def test_no_rows_are_a_file_without_rows(self, folder_lake, fake_run, tmp_path, kind):
        fake_run(folder_lake).publish(MODEL, "pca-none")
        done = export(folder_lake, "embeddings", tmp_path / "x", kind)
        assert (done.rows, done.path.stat().st_size > 0) == (0, True)
