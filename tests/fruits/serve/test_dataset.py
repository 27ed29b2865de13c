import csv
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fruits.errors import FruitsError
from fruits.lake import catalog
from fruits.lake.catalog import Lake
from fruits.serve import dataset as module
from fruits.serve import formats
from fruits.serve.dataset import export_dataset
from fruits.settings import Settings
from tests.runs import plane

pytestmark = pytest.mark.jobs

MODEL = "backbone-1"
RNG = np.random.default_rng(0)
LABELS = ('=Fig | "x"\n# dried', "Kiwi", "Ähre")  # sorted
KEYS = {
    **{f"train/{label}/{n}.jpg": label for label in LABELS for n in range(6)},
    **{f"test/{label}/{n}.jpg": label for label in LABELS[1:] for n in range(4)},
}
PHOTOS = {key: RNG.normal(size=5).astype(np.float32) for key in sorted(KEYS)}


@pytest.fixture(scope="module")
def lake(tmp_path_factory, fake_run):
    """Settings of a lake with a publication; rows of another backbone and of a later run beside it."""
    folder = tmp_path_factory.mktemp("lake")
    settings = Settings.load(lake=f"file://{folder}/lake", catalog_uri=f"sqlite:///{folder}/catalog.db")
    run = fake_run(settings)
    run.write({f"other/{key}": vector[:3] for key, vector in PHOTOS.items()}, "another", pca=plane())
    pca_id = run.write(PHOTOS, MODEL)
    run.publish(MODEL, pca_id)
    later = fake_run(settings)
    later.branch = "main"  # of a table may be ahead of the publication that a reader has
    later.write({"train/Later/1.jpg": PHOTOS["train/Kiwi/1.jpg"]}, MODEL, pca=plane(5))
    return settings


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def data_files(folder):
    return [path for path in sorted(folder.iterdir()) if path.name != "README.md"]


def parquet_rows(path):
    return pq.read_table(path).to_pylist()


def csv_rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            vectors = {
                name: [float(row[f"{letter}{n}"]) for n in range(len(row)) if f"{letter}{n}" in row]
                for name, letter in (("vector", "v"), ("embedding", "e"))
            }
            numbers = {name: int(row[name]) for name in ("target", "phash")}
            yield {**row, **numbers, "label": row["label"].removeprefix("'"), **vectors}


def npz_rows(path):
    with np.load(path) as found:
        names = {"X": "vector", "embeddings": "embedding", "y": "target", "keys": "key"}
        names |= {"labels": "label", "splits": "split", "sha256": "sha256", "phash": "phash"}
        columns = {name: found[array].tolist() for array, name in names.items()}
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True)) | {"publication_id": str(found["publication_id"])}


def tfrecord_rows(path):
    import tensorflow as tf

    numbers, texts = ("target", "phash"), ("key", "label", "split", "sha256", "publication_id")
    spec = {name: tf.io.FixedLenFeature([], tf.int64) for name in numbers}
    spec |= {name: tf.io.FixedLenFeature([], tf.string) for name in texts}
    spec |= {name: tf.io.VarLenFeature(tf.float32) for name in ("vector", "embedding")}
    for example in tf.data.TFRecordDataset(str(path)):
        row = tf.io.parse_single_example(example, spec)
        yield {
            **{name: int(row[name]) for name in numbers},
            **{name: row[name].numpy().decode() for name in texts},
            **{name: row[name].values.numpy().tolist() for name in ("vector", "embedding")},
        }


READERS = {"parquet": parquet_rows, "csv": csv_rows, "npz": npz_rows, "tfrecord": tfrecord_rows}
EVERY_FORMAT = [pytest.param(name, marks=pytest.mark.heavy if name == "tfrecord" else ()) for name in READERS]


@pytest.mark.parametrize("kind", EVERY_FORMAT)
def test_each_format_has_every_published_photo_once_in_the_file_of_its_split(
    lake, publication, tmp_path, monkeypatch, kind
):
    monkeypatch.setattr(module, "SHARD_ROWS", 7)
    monkeypatch.setattr(catalog, "_BATCH_ROWS", 5)
    done = export_dataset(lake, tmp_path / "d", kind, embeddings=True)

    assert files(tmp_path / "d") == [
        "README.md",
        *(f"test-{n:05d}-of-00002.{kind}" for n in range(2)),
        *(f"train-{n:05d}-of-00003.{kind}" for n in range(3)),
    ]
    rows: dict = {}
    for path in data_files(tmp_path / "d"):
        found = list(READERS[kind](path))
        assert len(found) <= 7
        assert {row["split"] for row in found} == {path.name.partition("-")[0]}
        rows |= {row["key"]: row for row in found}
    snapshots = publication.snapshots
    features = Lake.open(lake).read("features", snapshots["features"], model_id=MODEL).to_pylist()
    embedded = Lake.open(lake).read("embeddings", snapshots["embeddings"], pca_id=publication.pca_id).to_pylist()
    embedding = {row["key"]: row["embedding"] for row in embedded}
    assert len(rows) == len(features) == done.rows == len(PHOTOS)
    for feature in features:
        row = rows[feature["key"]]
        assert all(row[name] == feature[name] for name in ("label", "split", "sha256", "phash"))
        assert LABELS[row["target"]] == feature["label"]
        assert row["publication_id"] == done.publication_id == publication.publication_id
        assert np.float32(row["vector"]).tolist() == feature["vector"]
        assert np.float32(row["embedding"]).tolist() == embedding[feature["key"]]


@pytest.mark.parametrize("kind", EVERY_FORMAT)
def test_embeddings_come_when_asked_for(lake, tmp_path, kind):
    export_dataset(lake, tmp_path / "d", kind)
    for path in data_files(tmp_path / "d"):
        assert not [word for word in (b"embedding", b'"e0"') if word in path.read_bytes()]


def test_rows_are_written_as_they_are_read(lake, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "_BATCH_ROWS", 5)
    told = []
    export_dataset(lake, tmp_path / "d", "parquet", progress=lambda *counts: told.append(counts))
    assert told[0] == (0, 26)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert max(b - a for (a, _), (b, _) in zip(told, told[1:], strict=False)) <= 5
    assert told[-1] == (26, 26)


class TestHuggingFace:
    def test_the_card_names_the_files_of_each_split(self, lake, tmp_path):
        export_dataset(lake, tmp_path / "d", "parquet")
        head = (tmp_path / "d" / "README.md").read_text().split("---\n")[1]
        assert re.findall(r"- split: (\w+)\n    path: (\S+)\n", head) == [
            ("train", "train-*.parquet"),
            ("test", "test-*.parquet"),
        ]
        for _, pattern in re.findall(r"- split: (\w+)\n    path: (\S+)\n", head):
            assert len(list((tmp_path / "d").glob(pattern))) == 1

    def test_the_files_name_the_labels_of_the_targets(self, lake, tmp_path):
        export_dataset(lake, tmp_path / "d", "parquet")
        for path in data_files(tmp_path / "d"):
            schema = pq.read_schema(path)
            features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
            assert features == {"target": {"names": list(LABELS), "_type": "ClassLabel"}}
            assert schema.field("target") == pa.field("target", pa.int64())  # of another column, the names are ignored

    def test_the_other_formats_do_not_pretend(self, lake, tmp_path):
        export_dataset(lake, tmp_path / "d", "csv")
        assert (tmp_path / "d" / "README.md").read_text().startswith("# ")


class TestCard:
    @pytest.mark.parametrize("kind", EVERY_FORMAT)
    def test_it_says_what_the_folder_has(self, lake, publication, tmp_path, kind):
        export_dataset(lake, tmp_path / "d", kind)
        card = (tmp_path / "d" / "README.md").read_text()
        for text in (publication.publication_id, publication.pca_id, MODEL, "| train | 18 | 1 |", "| test | 8 | 1 |"):
            assert text in card
        assert "| 1 | Kiwi | 6 | 4 |" in card
        assert "| `sha256` | string |" in card

    def test_no_label_is_markdown(self, lake, tmp_path):
        export_dataset(lake, tmp_path / "d", "csv")
        card = (tmp_path / "d" / "README.md").read_text()
        assert '| 0 | =Fig \\| "x"\\\\n# dried | 6 | 0 |' in card.splitlines()


class TestRefused:
    def test_nothing_to_train_from(self, folder_lake, fake_run, tmp_path):
        fake_run(folder_lake).publish(MODEL, "pca-none")
        with pytest.raises(FruitsError, match="no features"):
            export_dataset(folder_lake, tmp_path / "d", "parquet")
        assert not [path for path in tmp_path.iterdir() if path.name not in ("lake", "catalog.db")]

    def test_embeddings_of_a_publication_without_a_pca(self, folder_lake, fake_run, tmp_path):
        run = fake_run(folder_lake)
        run.write(PHOTOS, MODEL)
        run.publish(MODEL, "pca-none")
        with pytest.raises(FruitsError, match="is not in its pca_models"):
            export_dataset(folder_lake, tmp_path / "d", "parquet", embeddings=True)
        assert export_dataset(folder_lake, tmp_path / "d", "parquet").rows == len(PHOTOS)

    def test_two_splits_of_one_name_for_files(self, folder_lake, fake_run, tmp_path):
        run = fake_run(folder_lake)
        run.write(
            {f"{split}/Kiwi/1.jpg": PHOTOS["train/Kiwi/1.jpg"] for split in ("hold-out", "hold_out")},
            MODEL,
            pca=plane(5),
        )
        run.publish(MODEL, "pca-none")
        with pytest.raises(FruitsError, match="the splits hold-out, hold_out differ in signs"):
            export_dataset(folder_lake, tmp_path / "d", "csv")

    def test_tfrecord_without_tensorflow(self, lake, tmp_path, monkeypatch):
        monkeypatch.setattr("fruits.serve.formats.find_spec", lambda _: None)
        with pytest.raises(FruitsError, match="make setup-tensorflow"):
            export_dataset(lake, tmp_path / "d", "tfrecord")
        assert not list(tmp_path.iterdir())

    def test_the_name_of_a_file(self, lake, tmp_path):
        with pytest.raises(FruitsError, match="is a folder"):
            export_dataset(lake, tmp_path / "d.csv", "csv")

    def test_an_unknown_format(self, lake, tmp_path):
        with pytest.raises(FruitsError, match="expected parquet or csv or npz or tfrecord"):
            export_dataset(lake, tmp_path / "d", "feather")

    def test_a_lake_without_publications(self, folder_lake, tmp_path):
        Lake.open(folder_lake)
        with pytest.raises(FruitsError, match="nothing has been published"):
            export_dataset(folder_lake, tmp_path / "d", "parquet")

    def test_numpy_without_memory(self, lake, tmp_path, monkeypatch):
        monkeypatch.setattr(formats, "MAX_NPZ_BYTES", 18 * 5 * 4 - 1)
        with pytest.raises(FruitsError, match="dataset as npz"):
            export_dataset(lake, tmp_path / "d", "npz")
        assert list(tmp_path.iterdir()) == []
        monkeypatch.setattr(module, "SHARD_ROWS", 3)
        monkeypatch.setattr(formats, "MAX_NPZ_BYTES", 3 * (5 * 4 + 4 * 256))
        assert export_dataset(lake, tmp_path / "d", "npz").rows == len(PHOTOS)


def test_another_export_replaces_a_dataset_and_nothing_else(lake, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_ROWS", 3)
    export_dataset(lake, tmp_path / "d", "csv")
    monkeypatch.undo()
    with pytest.raises(FruitsError, match="exists already"):
        export_dataset(lake, tmp_path / "d", "parquet")
    export_dataset(lake, tmp_path / "d", "parquet", overwrite=True)
    assert files(tmp_path / "d") == ["README.md", "test-00000-of-00001.parquet", "train-00000-of-00001.parquet"]


@pytest.mark.parametrize("foreign", ["notes.txt", "README.md", "train-00000-of-00001.parquet"])
def test_somebody_elses_folder_is_not_replaced(lake, tmp_path, foreign):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / foreign).write_text("mine")
    with pytest.raises(FruitsError, match=f"holds '{foreign}'"):
        export_dataset(lake, tmp_path / "d", "parquet", overwrite=True)
    assert (tmp_path / "d" / foreign).read_text() == "mine"


def test_a_dataset_with_a_file_of_somebody_is_not_replaced(lake, tmp_path):
    export_dataset(lake, tmp_path / "d", "parquet")
    (tmp_path / "d" / "notes").mkdir()
    with pytest.raises(FruitsError, match="holds 'notes'"):
        export_dataset(lake, tmp_path / "d", "parquet", overwrite=True)
    assert (tmp_path / "d" / "notes").is_dir()
