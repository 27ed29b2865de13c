"""What is this photo? Labels with a confidence and the nearest photos, from the published tables alone.

A photo is treated like the photos in the bucket: the same decoding, the publication's backbone, its PCA. The
publication's classifier tells the label from the feature. The embedding is compared with the published embeddings in
whitened space, where each component is divided by its standard deviation: components of little variance tell kinds
apart that the first ones do not.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fruits.analysis.classifier import Classifier
from fruits.analysis.pca import PCA, transform, whiten
from fruits.backbones.runtime import Backbone
from fruits.backbones.stage import load_backbone
from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.classifier_tables import load_classifier
from fruits.lake.pca_tables import load_versions
from fruits.lake.publication import Publication
from fruits.lake.reader import PublishedRows, current_publication, open_read_only
from fruits.photos.decode import Limits, UnreadablePhotoError, decode, needed_side, preprocess
from fruits.photos.quarantine import Reason
from fruits.run.manifest import evenly
from fruits.settings import Settings

_MOST_LABELS = 5
_TYPICAL_PHOTOS = 256
"""Size of the sample of published photos that familiarity compares with; a share of 256 is right to about 3 %."""

LEAST_FAMILIAR = 0.1
"""A photo of less familiarity shows something unknown: of published photos, as many would be taken for unknown."""

_COLUMNS = ("key", "label", "embedding", "residual")
_DIGITS = 5  # of a similarity: further digits depend on how many rows were compared at once

_QUERIES_AT_ONCE = 1_024  # with 8,192 rows of a batch, 32 MB of similarities

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Neighbour:
    """A published photo near another photo; ``similarity`` is the cosine of the whitened embeddings, -1 to 1."""

    key: str
    label: str
    similarity: float


@dataclass(frozen=True)
class Identification:
    """The answer for one photo; after an error, everything but ``path`` and ``error`` is empty or None.

    Attributes:
        path: The file, as the caller named it.
        label: The likeliest label.
        confidence: Probability of ``label``, 0 to 1, given that the photo shows one of the published labels.
        labels: The likeliest labels with their probabilities, the best first, at most 5.
        candidates: The set of labels that has the right one for 19 of 20 known photos: one label, several, or none.
            Empty for a photo of something unknown.
        known: Whether the photo is like the published photos; see ``LEAST_FAMILIAR``.
        nearest: The nearest published photos, the nearest first.
        familiarity: Share of the published photos, 0 to 1, whose nearest other photo is no nearer than this photo's
            nearest. Near 0, the photo is like none of the published photos, and the labels mean little.
        error: Why the photo could not be identified; None without an error.
        model_id: Backbone of the publication.
        pca_id: PCA version of the publication.
        classifier_id: Classifier of the publication; None without one, and then there are no labels.
        publication_id: The publication that gave the answer.
    """

    path: Path
    label: str | None
    confidence: float | None
    labels: tuple[tuple[str, float], ...]
    candidates: tuple[str, ...]
    known: bool | None
    nearest: tuple[Neighbour, ...]
    familiarity: float | None
    error: str | None
    model_id: str
    pca_id: str
    classifier_id: str | None
    publication_id: str


@dataclass(frozen=True, eq=False)
class EmbeddedPhotos:
    """``n`` photos: ``keys`` and ``labels`` of length ``n``, ``embedding`` ``(n, k)``, ``residual`` ``(n,)``."""

    keys: Sequence[str]
    labels: Sequence[str]
    embedding: Matrix
    residual: Matrix


def identify(settings: Settings, photos: Sequence[Path], *, nearest: int = 5) -> list[Identification]:
    """Identify each photo by the current publication, in order. A photo that cannot be read does not stop the others.

    The published embeddings are read twice, in batches: for typical photos, the same ones each time, and for the
    nearest photos among all rows. A publication of an earlier release has no classifier, and so no labels.

    Args:
        settings: Where the lake is.
        photos: Local files.
        nearest: The number of neighbours to name, at least 0.

    Raises:
        FruitsError: if nothing has been published, or the publication has no photos.
    """
    if nearest < 0:
        raise FruitsError(f"nearest {nearest}: expected the number of nearest photos to name, 0 or more")
    lake = open_read_only(settings)
    publication = current_publication(lake)
    rows = PublishedRows(lake, publication, "embeddings", _COLUMNS)
    sample = sample_rows(rows.batches(), _TYPICAL_PHOTOS)
    if not sample.keys:
        raise FruitsError(
            f"publication {publication.publication_id}: no photos to compare with; upload photos as <label>/<file> and "
            "run the DAG"
        )
    pca = _pca(lake, publication)
    model_id = str(publication.model_id)
    classifier = load_classifier(lake, publication)
    backbone = load_backbone(settings, model_id)
    vectors = [_vector(path, backbone, settings) for path in photos]
    readable = [vector for vector in vectors if not isinstance(vector, str)]
    answers = iter(_answers(readable, pca, classifier, sample, rows, nearest)) if readable else iter(())
    classifier_id = classifier.classifier_id if classifier else None
    identity = (model_id, str(publication.pca_id), classifier_id, str(publication.publication_id))
    return [
        Identification(path, None, None, (), (), None, (), None, vector, *identity)
        if isinstance(vector, str)
        else Identification(path, *next(answers), None, *identity)
        for path, vector in zip(photos, vectors, strict=True)
    ]


def sample_rows(batches: Iterator[pa.RecordBatch], most: int) -> EmbeddedPhotos:
    """A sample of about ``most`` photos at most, in the order of keys; the order of the rows does not change it.

    A label with few photos keeps all of its photos. The other labels keep equally many photos: those whose key has the
    least hash.

    Args:
        batches: Rows with the columns key, label, embedding and residual.
        most: Size of the sample. At least one photo of each label is kept, however many labels there are.
    """
    tables: list[pa.Table] = []
    rows = 0
    for batch in batches:
        tables.append(pa.Table.from_batches([batch]))
        rows += batch.num_rows
        if rows > 2 * most + batch.num_rows:
            # A row that is dropped now would be dropped in the end, because shares only shrink as rows come.
            tables = [_equal_shares(pa.concat_tables(tables), most)]
            rows = tables[0].num_rows
    if not tables:
        return EmbeddedPhotos((), (), np.empty((0, 0), np.float32), np.empty(0, np.float32))
    return _photos(_equal_shares(pa.concat_tables(tables), most).sort_by("key"))


def nearest_photos(batches: Iterator[pa.RecordBatch], queries: Matrix, count: int, pca: PCA) -> list[list[Neighbour]]:
    """For each query, the ``count`` published photos of the greatest cosine, the best first, equal cosines by key.

    The search is exact: it compares every row, a batch at a time.

    Args:
        batches: Rows with the columns key, label, embedding and residual.
        queries: Embeddings, shape ``(q, k)``.
        count: At least 1.
        pca: Both are whitened by its variances.
    """
    directions = _directions(whiten(pca, queries))
    best: list[list[Neighbour]] = [[] for _ in directions]
    for batch in batches:
        photos = _photos(pa.Table.from_batches([batch]).sort_by("key"))
        published = _directions(whiten(pca, photos.embedding)).T
        last = min(count, len(photos.keys))
        for start in range(0, len(directions), _QUERIES_AT_ONCE):
            similarity = np.round(directions[start : start + _QUERIES_AT_ONCE] @ published, _DIGITS)
            thresholds = np.partition(similarity, -last, axis=1)[:, -last]
            for query, (cosines, threshold) in enumerate(zip(similarity, thresholds, strict=True), start):
                # Equal cosines may let more than `count` photos reach the threshold; the stable sort keeps them by key.
                reaching = np.flatnonzero(cosines >= threshold)
                nearest = reaching[np.argsort(-cosines[reaching], kind="stable")][:count].tolist()
                neighbours = [
                    Neighbour(photos.keys[photo], photos.labels[photo], round(float(cosines[photo]), _DIGITS))
                    for photo in nearest
                ]
                merged = [*best[query], *neighbours]
                best[query] = sorted(merged, key=lambda photo: (-photo.similarity, photo.key))[:count]
    return best


Answer = tuple[
    str | None, float | None, tuple[tuple[str, float], ...], tuple[str, ...], bool, tuple[Neighbour, ...], float
]
"""Label, confidence, labels, candidates, known, nearest and familiarity."""


def _answers(
    vectors: Sequence[Matrix],
    pca: PCA,
    classifier: Classifier | None,
    sample: EmbeddedPhotos,
    rows: PublishedRows,
    count: int,
) -> Iterator[Answer]:
    """The answer for each feature vector."""
    embedding, residual = transform(pca, np.stack(vectors))
    typical = evenly(range(len(sample.keys)), _TYPICAL_PHOTOS)
    queries = np.concatenate([embedding, sample.embedding[typical]])
    nearest = nearest_photos(rows.batches(), queries, max(count, 1) + 1, pca)  # a published photo is its own nearest
    of_queries, of_typical = nearest[: len(vectors)], nearest[len(vectors) :]
    typical_nearness = np.sort(
        [
            _nearness(
                [photo for photo in neighbours if photo.key != sample.keys[row]],
                sample.embedding[row],
                sample.residual[row],
            )
            for row, neighbours in zip(typical, of_typical, strict=True)
        ]
    )
    for row, neighbours in enumerate(of_queries):
        nearness = _nearness(neighbours, embedding[row], residual[row])
        familiarity = float(np.searchsorted(typical_nearness, nearness, side="right")) / len(typical_nearness)
        known = familiarity >= LEAST_FAMILIAR
        labels, candidates = _labels(classifier, vectors[row]) if classifier else ((), ())
        best = labels[0] if labels else (None, None)
        yield *best, labels, candidates if known else (), known, tuple(neighbours[:count]), round(familiarity, 3)


def _labels(classifier: Classifier, vector: Matrix) -> tuple[tuple[tuple[str, float], ...], tuple[str, ...]]:
    """The likeliest labels with their probabilities, and the labels of the set, the likeliest first."""
    rows = vector[np.newaxis]
    (probabilities,), (in_set,) = classifier.probabilities(rows), classifier.sets(rows)
    order = np.argsort(-probabilities, kind="stable").tolist()
    likeliest = tuple((classifier.labels[place], float(probabilities[place])) for place in order[:_MOST_LABELS])
    return likeliest, tuple(classifier.labels[place] for place in order if in_set[place])


def _nearness(neighbours: Sequence[Neighbour], embedding: Matrix, residual: np.float32) -> float:
    """Cosine with the nearest photo, reduced for a photo whose feature the components explain badly.

    A conformity score after Vovk, Gammerman & Shafer (2005): the value has a meaning only in comparison with the values
    of published photos.
    """
    length = float(np.hypot(np.linalg.norm(embedding), residual))
    kept = float(np.linalg.norm(embedding)) / length if length else 0.0
    return neighbours[0].similarity * kept if neighbours else -1.0


def _vector(path: Path, backbone: Backbone, settings: Settings) -> Matrix | str:
    """The photo's feature vector as an executor would compute it, or the reason why the photo cannot be read."""
    limits = Limits(settings.max_photo_bytes, settings.max_photo_pixels)
    preprocessing = backbone.card.preprocessing
    try:
        with path.open("rb") as file:
            data = file.read(limits.max_bytes + 1)
        if len(data) > limits.max_bytes:
            return f"{Reason.TOO_MANY_BYTES}: expected at most {limits.max_bytes:,} bytes (FRUITS_MAX_PHOTO_BYTES)"
        photo = decode(data, limits, needed_side(preprocessing))
    except UnreadablePhotoError as error:
        return f"{error.reason}: {error.detail}"
    except IsADirectoryError:
        return "a folder; expected a photo's file"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return backbone.features(preprocess(photo.image, preprocessing))


def _pca(lake: Lake, publication: Publication) -> PCA:
    versions = load_versions(lake, publication.snapshots["pca_models"], str(publication.model_id))
    for version in versions:
        if version.pca_id == publication.pca_id:
            return version.pca
    raise FruitsError(
        f"publication {publication.publication_id}: PCA version {publication.pca_id} is not in its pca_models; roll "
        "back to another publication, or run the DAG with refit `always`"
    )


def _equal_shares(rows: pa.Table, most: int) -> pa.Table:
    """At most about ``most`` rows: all rows of rare labels, and equally many rows of each other label."""
    if rows.num_rows <= most:
        return rows
    share = _share(sorted(Counter(rows["label"].to_pylist()).values()), most)
    hashes = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in rows["key"].to_pylist()]
    kept, taken = [], Counter[str]()
    labels = rows["label"].to_pylist()
    for row in sorted(range(rows.num_rows), key=hashes.__getitem__):
        if taken[labels[row]] < share:
            taken[labels[row]] += 1
            kept.append(row)
    return rows.take(pa.array(kept))


def _share(counts: Sequence[int], most: int) -> int:
    """The largest number of rows to keep of each label, such that all labels together have at most ``most`` rows.

    ``counts`` are the rows of each label, in ascending order.
    """
    rows_left = most
    for smaller_labels, count in enumerate(counts):
        labels_left = len(counts) - smaller_labels
        if count * labels_left > rows_left:
            return max(1, rows_left // labels_left)
        rows_left -= count
    return counts[-1]


def _photos(rows: pa.Table) -> EmbeddedPhotos:
    vectors = rows["embedding"].combine_chunks()
    embedding = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1)
    return EmbeddedPhotos(rows["key"].to_pylist(), rows["label"].to_pylist(), embedding, rows["residual"].to_numpy())


def _directions(rows: Matrix) -> Matrix:
    """Scale each row to length 1. A row of zeros stays zero and has a cosine of 0 with every row."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), dtype=np.float32)
