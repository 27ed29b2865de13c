"""The published features as a dataset to train from: a folder with files for each split, and a card.

Files are named as Hugging Face's ``datasets`` names them, so the folder of Parquet files is one that
``datasets.load_dataset`` loads, with the labels' names.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fruits.analysis.pca import PCA, transform
from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.pca_tables import load_pca
from fruits.lake.publication import Publication
from fruits.lake.reader import PublishedRows, current_publication, open_read_only
from fruits.lake.schemas import EMBEDDINGS, FEATURES, matrix
from fruits.photos.keys import FIT_SPLIT
from fruits.serve.export import Exported, Progress, origin_of, reported
from fruits.serve.formats import WRITERS, Format, Rows, check_writable
from fruits.serve.targets import new_folder
from fruits.settings import Settings
from fruits.text import readable

SHARD_ROWS = 50_000
"""Most rows of a file: 256 MB of features of length 1,280, which a NumPy file needs in memory as well."""

_READ = ("key", "label", "split", "sha256", "phash", "vector")
_TARGET = pa.field("target", pa.int64(), metadata={"doc": "Number of the label, from 0: its place below."})
"""Nullable, though no target is null: ``datasets`` does not take a column for a ClassLabel otherwise."""
_PUBLICATION_ID = pa.field("publication_id", pa.string(), False, {"doc": "Publication that the row is of."})
_CARD, _TITLE = "README.md", "# Features of fruit photos"
_SHARD = re.compile(rf"\w+-\d{{5}}-of-\d{{5}}\.({'|'.join(WRITERS)})")
_LOADING: Mapping[Format, str] = {
    "parquet": 'datasets.load_dataset(".")["{split}"].with_format("numpy")  # or pandas.read_parquet, file by file',
    "csv": 'pandas.concat(map(pandas.read_csv, sorted(glob.glob("{split}-*.csv"))))',
    "npz": '[numpy.load(name)["X"] for name in sorted(glob.glob("{split}-*.npz"))]  # with "y", "keys", "labels"',
    "tfrecord": """\
columns = {{
    "vector": tf.io.FixedLenFeature([{width}], tf.float32),
    "target": tf.io.FixedLenFeature([], tf.int64),
}}
rows = tf.data.TFRecordDataset(tf.io.gfile.glob("{split}-*.tfrecord"))
rows.shuffle(50_000).batch(256).map(lambda examples: tf.io.parse_example(examples, columns))""",
}


@dataclass(frozen=True)
class Dataset:
    """What a dataset has, known before its rows are read.

    Attributes:
        publication: The publication that the rows are of.
        counts: Photos by split and label.
        width: Length of the features.
        pca: The PCA version that gives the embeddings; None for rows without embeddings.
    """

    publication: Publication
    counts: Mapping[tuple[str, str], int]
    width: int
    pca: PCA | None

    @property
    def labels(self) -> list[str]:
        """The labels of all splits, sorted; the place of a label is its ``target``."""
        return sorted({label for _, label in self.counts})

    @property
    def splits(self) -> dict[str, int]:
        """The number of photos of each split, the fit split first."""
        photos = Counter[str]()
        for (split, _), count in self.counts.items():
            photos[split] += count
        return dict(sorted(photos.items(), key=lambda item: (item[0] != FIT_SPLIT, item[0])))

    @property
    def schema(self) -> pa.Schema:
        """The columns of a row."""
        key, label, *others, vector = (FEATURES.schema.field(name) for name in _READ)
        embedding = [EMBEDDINGS.schema.field("embedding")] if self.pca else []
        return pa.schema([key, label, _TARGET, *others, _PUBLICATION_ID, vector, *embedding])


def export_dataset(
    settings: Settings,
    target: Path,
    format: Format,  # noqa: A002 -- the word for it
    *,
    embeddings: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write the features of the current publication to the folder ``target``, to train from.

    A row is a photo, with the columns of ``Dataset.schema``. Rows come in the table's own order, by key for the most
    part. Memory does not grow with the rows.

    Args:
        settings: Where the lake is.
        target: The folder to make; complete, or not there.
        format: The format of the files; ``fruits.serve.formats`` says what a file of each format has.
        embeddings: Whether rows have the embedding under the publication's PCA version as well.
        overwrite: Whether a folder that an export made may be replaced.
        progress: Called with (written rows, all rows).

    Raises:
        FruitsError: when format or target can't be, nothing has been published, or there are no rows or no embeddings.
    """
    if format not in WRITERS:
        raise FruitsError(f"dataset as {format!r}: expected {' or '.join(WRITERS)}")
    if target.suffix.removeprefix(".") in WRITERS:
        raise FruitsError(f"{target}: a dataset is a folder with files for each split; name a folder")
    check_writable(format)
    lake = open_read_only(settings)
    publication = current_publication(lake)
    with new_folder(target, overwrite=overwrite, foreign_file=_foreign_file) as part:
        dataset = _survey(lake, publication, embeddings=embeddings)
        total, done = sum(dataset.counts.values()), 0
        for split, photos in dataset.splits.items():
            batches = _rows(lake, dataset, split)
            _write_split(part, dataset, split, format, reported(batches, total, progress, done=done))
            done += photos
        (part / _CARD).write_text(_card(dataset, format), encoding="utf-8")
    size = sum(path.stat().st_size for path in target.iterdir())
    return Exported(total, size, target, str(publication.publication_id))


def _foreign_file(folder: Path) -> str | None:
    """The name of something in a folder that is not part of a dataset of ours; each file, where our card is missing."""
    card = folder / _CARD
    ours = card.is_file() and _TITLE in card.read_text(encoding="utf-8", errors="replace")
    names = sorted(path.name for path in folder.iterdir())
    return next((name for name in names if not (ours and (name == _CARD or _SHARD.fullmatch(name)))), None)


def _survey(lake: Lake, publication: Publication, *, embeddings: bool) -> Dataset:
    """Count the photos by split and label; reads two columns of all rows, and the first vectors."""
    counts = Counter[tuple[str, str]]()
    for batch in PublishedRows(lake, publication, "features", ("label", "split")).batches():
        counts.update(zip(batch["split"].to_pylist(), batch["label"].to_pylist(), strict=True))
    first = next(PublishedRows(lake, publication, "features", ("vector",)).batches(), None)
    if first is None:
        raise FruitsError(
            f"publication {publication.publication_id}: has no features, so there is nothing to train from"
        )
    splits = sorted({split for split, _ in counts})
    if len({_file_name(split) for split in splits}) < len(splits):
        raise FruitsError(
            f"publication {publication.publication_id}: the splits {', '.join(splits)} differ in signs that names of "
            "files lack; name them otherwise by FRUITS_KEY_PATTERN"
        )
    pca = load_pca(lake, publication) if embeddings else None
    return Dataset(publication, counts, matrix(first["vector"]).shape[1], pca)


def _rows(lake: Lake, dataset: Dataset, split: str) -> Iterator[pa.RecordBatch]:
    """The rows of a split. A feature and the PCA give the embedding as published, so no table is joined."""
    labels, schema = pa.array(dataset.labels), dataset.schema
    for batch in PublishedRows(lake, dataset.publication, "features", _READ, split).batches():
        columns: dict[str, Any] = {name: batch[name] for name in _READ}
        columns["target"] = pc.index_in(batch["label"], labels).cast(pa.int64())
        columns["publication_id"] = pa.repeat(str(dataset.publication.publication_id), batch.num_rows)
        if dataset.pca:
            embedding, _ = transform(dataset.pca, matrix(batch["vector"]))
            offsets = np.arange(len(embedding) + 1, dtype=np.int32) * embedding.shape[1]
            lists = pa.ListArray.from_arrays(offsets, embedding.ravel())
            columns["embedding"] = lists.cast(schema.field("embedding").type)
        yield pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _write_split(
    folder: Path,
    dataset: Dataset,
    split: str,
    format: Format,  # noqa: A002
    batches: Iterator[pa.RecordBatch],
) -> None:
    photos, metadata = dataset.splits[split], {"huggingface": _class_label(dataset.labels)}
    for shard, pieces in groupby(_cut(batches), key=itemgetter(0)):
        rows = Rows(
            name="dataset",
            schema=dataset.schema,
            total=min(SHARD_ROWS, photos - shard * SHARD_ROWS),
            origin=origin_of(dataset.publication),
            batches=(piece for _, piece in pieces),
            metadata=metadata,
        )
        name = f"{_file_name(split)}-{shard:05d}-of-{_shards(photos):05d}.{format}"
        WRITERS[format](folder / name, rows)


def _file_name(split: str) -> str:
    """A split in the name of a file, and as ``datasets`` takes it: the key pattern may give any text."""
    return re.sub(r"\W", "_", split)


def _shards(photos: int) -> int:
    return -(-photos // SHARD_ROWS)


def _cut(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows with the number of their file, from 0."""
    done = 0
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            piece = batch.slice(start, SHARD_ROWS - done % SHARD_ROWS)
            yield done // SHARD_ROWS, piece
            start, done = start + piece.num_rows, done + piece.num_rows


def _class_label(labels: list[str]) -> str:
    """The labels' names as Hugging Face's ``datasets`` finds them in a Parquet file's metadata."""
    return json.dumps({"info": {"features": {"target": {"names": labels, "_type": "ClassLabel"}}}})


def _card(dataset: Dataset, format: Format) -> str:  # noqa: A002
    """The dataset's card, in Markdown; that of Parquet files begins with the names that ``datasets`` looks for."""
    publication, splits = dataset.publication, dataset.splits
    names = [_file_name(split) for split in splits]
    files = "".join(f"  - split: {name}\n    path: {name}-*.{format}\n" for name in names)
    head = f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n" if format == "parquet" else ""
    loading = _LOADING[format].format(split=names[0], width=dataset.width)
    columns = ((f"`{field.name}`", field.type, field.metadata[b"doc"].decode()) for field in dataset.schema)
    labels = (
        (place, _plain(label), *(dataset.counts.get((split, label), 0) for split in splits))
        for place, label in enumerate(dataset.labels)
    )
    return f"""{head}{_TITLE}

A row is a photo: the feature of length {dataset.width} that backbone `{publication.model_id}` computed.

- publication: `{publication.publication_id}` of {publication.published_at:%Y-%m-%d %H:%M} UTC
- backbone: `{publication.model_id}`
- PCA version: `{publication.pca_id}`

Rows are nearly in the order of their keys: shuffle them before you train. Split `{FIT_SPLIT}` is what PCA and
classifier were fitted on, other splits are held out.

```python
{loading}
```

{_table(("split", "photos", "files"), ((split, photos, _shards(photos)) for split, photos in splits.items()))}
{_table(("column", "type", "meaning"), columns)}
{_table(("target", "label", *splits), labels)}"""


def _table(header: tuple[str, ...], rows: Iterator[tuple[object, ...]]) -> str:
    lines = (header, ("---",) * len(header), *rows)
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _plain(label: str) -> str:
    """A label, which anybody can write, as text that is no Markdown."""
    return re.sub(r"([\\`*_\[\]<>|&~])", r"\\\1", readable(label))
