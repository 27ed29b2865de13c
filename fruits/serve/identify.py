"""What is this photo? Labels with a confidence and the nearest photos, from the published tables alone.

A photo is treated like the photos in the bucket: the same decoding, the publication's backbone, its PCA. The
publication's classifier tells the label from the feature. The nearest published photos tell whether the photo shows
something known (``fruits.serve.neighbours``). The command `fruits identify` and the service ask the same ``Engine``.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fruits.analysis.classifier import Classifier
from fruits.analysis.pca import PCA, transform
from fruits.backbones.card import Preprocessing
from fruits.backbones.runtime import Backbone
from fruits.backbones.stage import load_backbone
from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.classifier_tables import load_classifier
from fruits.lake.pca_tables import load_pca
from fruits.lake.publication import Publication
from fruits.lake.reader import PublishedRows, current_publication, open_read_only
from fruits.lake.schemas import matrix
from fruits.photos.decode import Limits, UnreadablePhotoError, decode, needed_side, preprocess
from fruits.photos.quarantine import Reason
from fruits.run.manifest import evenly
from fruits.serve.neighbours import Neighbour, Neighbours, open_neighbours
from fruits.settings import Settings

_MOST_LABELS = 5
_TYPICAL_PHOTOS = 256
"""Size of the sample of published photos that familiarity compares with; a share of 256 is right to about 3 %."""

LEAST_FAMILIAR = 0.1
"""A photo of less familiarity shows something unknown: of published photos, as many would be taken for unknown."""

NO_CLASSIFIER = (
    "This publication has no classifier: an earlier release made it, or the fit split has no photo. The next run that "
    "changes a photo fits a classifier; where the lake has no sums by label, a run with refit `always` does."
)

_COLUMNS = ("key", "label", "embedding", "residual")

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Versions:
    """A publication with its backbone, its PCA version and its classifier (None without one)."""

    publication_id: str
    model_id: str
    pca_id: str
    classifier_id: str | None


@dataclass(frozen=True)
class Identification:
    """The answer for one photo.

    Attributes:
        label: The likeliest label; None without a classifier.
        confidence: Probability of ``label``, 0 to 1, given that the photo shows one of the published labels.
        labels: The likeliest labels with their probabilities, the best first, at most 5.
        candidates: The set of labels that has the right one for 19 of 20 known photos: one label, several, or none.
            Empty for a photo of something unknown.
        known: Whether the photo is like the published photos; see ``LEAST_FAMILIAR``.
        nearest: The nearest published photos, the nearest first.
        familiarity: Share of the published photos, 0 to 1, whose nearest other photo is no nearer than this photo's
            nearest. Near 0, the photo is like none of the published photos, and the labels mean little.
        versions: The publication that gave the answer, and its parts.
    """

    label: str | None
    confidence: float | None
    labels: tuple[tuple[str, float], ...]
    candidates: tuple[str, ...]
    known: bool
    nearest: tuple[Neighbour, ...]
    familiarity: float
    versions: Versions

    def to_document(self) -> dict[str, Any]:
        """The answer as JSON has it."""
        return {
            "label": self.label,
            "confidence": self.confidence,
            "familiarity": self.familiarity,
            "known": self.known,
            "candidates": list(self.candidates),
            "labels": [{"label": label, "confidence": confidence} for label, confidence in self.labels],
            "nearest": [asdict(photo) for photo in self.nearest],
            **asdict(self.versions),
        }


@dataclass(frozen=True, eq=False)
class EmbeddedPhotos:
    """``n`` photos: ``keys`` and ``labels`` of length ``n``, ``embedding`` ``(n, k)``, ``residual`` ``(n,)``."""

    keys: Sequence[str]
    labels: Sequence[str]
    embedding: Matrix
    residual: Matrix


@dataclass(frozen=True, eq=False)
class Engine:
    """All that answers for a photo, loaded once from one publication. Several threads may ask at once.

    Attributes:
        publication: The publication; each answer names it.
        pca: Its PCA version.
        classifier: Its classifier; None in a publication of an earlier release.
        neighbours: Its photos, to be searched for the nearest.
        typical_nearness: Nearness of a sample of its photos to their nearest other photo, ascending.
        limits: The largest photo that is decoded.
        preprocessing: How its backbone wants photos.
        backbones: Copies of its backbone. Each computes one feature at a time; who takes a copy gives it back.
    """

    publication: Publication
    pca: PCA
    classifier: Classifier | None
    neighbours: Neighbours
    typical_nearness: NDArray[np.float64]
    limits: Limits
    preprocessing: Preprocessing
    backbones: SimpleQueue[Backbone]

    @classmethod
    def load(cls, settings: Settings) -> "Engine":
        """The engine of the current publication, for one thread.

        Raises:
            FruitsError: if nothing has been published, or the publication has no photos.
        """
        lake = open_read_only(settings)
        return cls.of(lake, current_publication(lake))

    @classmethod
    def of(cls, lake: Lake, publication: Publication, *, threads: int = 1, before: "Engine | None" = None) -> "Engine":
        """The engine of a publication, with a copy of the backbone for each of some threads.

        The segments of the neighbour index that the engine ``before`` has are not checked again.

        Raises:
            FruitsError: if the publication has no photos, or a part of it is missing.
        """
        sample = sample_rows(PublishedRows(lake, publication, "embeddings", _COLUMNS).batches(), _TYPICAL_PHOTOS)
        if not sample.keys:
            raise FruitsError(
                f"publication {publication.publication_id}: no photos to compare with; upload photos as "
                "<label>/<file> and run the DAG"
            )
        pca = load_pca(lake, publication)
        neighbours = open_neighbours(lake, publication, pca, before=before.neighbours if before else None)
        backbones = [load_backbone(lake.settings, str(publication.model_id)) for _ in range(threads)]
        pool: SimpleQueue[Backbone] = SimpleQueue()
        for backbone in backbones:
            pool.put(backbone)
        return cls(
            publication,
            pca,
            load_classifier(lake, publication),
            neighbours,
            _typical_nearness(neighbours, sample),
            Limits(lake.settings.max_photo_bytes, lake.settings.max_photo_pixels),
            backbones[0].card.preprocessing,
            pool,
        )

    @property
    def versions(self) -> Versions:
        """What gives the answers."""
        return Versions(
            publication_id=str(self.publication.publication_id),
            model_id=str(self.publication.model_id),
            pca_id=str(self.publication.pca_id),
            classifier_id=self.publication.classifier_id if self.classifier else None,
        )

    @property
    def lacks(self) -> str | None:
        """What the answers lack, and what to do about it; None if nothing."""
        return None if self.classifier else NO_CLASSIFIER

    def identify(self, photo: bytes, *, nearest: int = 5) -> Identification:
        """The answer for one photo, with so many neighbours.

        Raises:
            UnreadablePhotoError: for bytes that are no photo that is read.
        """
        (answer,) = self.answers([self.feature(photo)], nearest=nearest)
        return answer

    def feature(self, photo: bytes) -> Matrix:
        """The photo's feature vector, shape ``(d,)``, as an executor would compute it.

        Raises:
            UnreadablePhotoError: for bytes that are no photo that is read.
        """
        image = decode(photo, self.limits, needed_side(self.preprocessing)).image
        pixels = preprocess(image, self.preprocessing)
        backbone = self.backbones.get()
        try:
            return backbone.features(pixels)
        finally:
            self.backbones.put(backbone)

    def answers(self, features: Sequence[Matrix], *, nearest: int = 5) -> list[Identification]:
        """The answer for each feature vector; an answer does not depend on the others. One search is for all.

        Args:
            features: Vectors of shape ``(d,)``.
            nearest: The number of neighbours to name, at least 0.
        """
        if nearest < 0:
            raise FruitsError(f"nearest {nearest}: expected the number of nearest photos to name, 0 or more")
        if not features:
            return []
        embedding, residual = transform(self.pca, np.stack(features))
        neighbours = self.neighbours.nearest(embedding, max(nearest, 1))
        return [
            self._answer(feature, found, _nearness(found, embedding[row], residual[row]), nearest)
            for row, (feature, found) in enumerate(zip(features, neighbours, strict=True))
        ]

    def _answer(
        self, feature: Matrix, neighbours: Sequence[Neighbour], nearness: float, nearest: int
    ) -> Identification:
        less_near = np.searchsorted(self.typical_nearness, nearness, side="right")
        familiarity = float(less_near) / len(self.typical_nearness)
        known = familiarity >= LEAST_FAMILIAR
        labels, candidates = _labels(self.classifier, feature) if self.classifier else ((), ())
        label, confidence = labels[0] if labels else (None, None)
        return Identification(
            label=label,
            confidence=confidence,
            labels=labels,
            candidates=candidates if known else (),
            known=known,
            nearest=tuple(neighbours[:nearest]),
            familiarity=round(familiarity, 3),
            versions=self.versions,
        )


def identify_files(engine: Engine, photos: Sequence[Path], *, nearest: int = 5) -> list[Identification | str]:
    """The answer for each file, in order, or why it cannot be read; such a file does not stop the others."""
    features = [_feature_of_file(engine, path) for path in photos]
    answers = iter(engine.answers([feature for feature in features if not isinstance(feature, str)], nearest=nearest))
    return [feature if isinstance(feature, str) else next(answers) for feature in features]


def _feature_of_file(engine: Engine, path: Path) -> Matrix | str:
    """The photo's feature vector, or the reason why the photo cannot be read."""
    most = engine.limits.max_bytes
    try:
        with path.open("rb") as file:
            photo = file.read(most + 1)
        if len(photo) > most:
            return f"{Reason.TOO_MANY_BYTES}: expected at most {most:,} bytes (FRUITS_MAX_PHOTO_BYTES)"
        return engine.feature(photo)
    except UnreadablePhotoError as error:
        return f"{error.reason}: {error.detail}"
    except IsADirectoryError:
        return "a folder; expected a photo's file"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def sample_rows(batches: Iterable[pa.RecordBatch], most: int) -> EmbeddedPhotos:
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


def _typical_nearness(neighbours: Neighbours, sample: EmbeddedPhotos) -> NDArray[np.float64]:
    typical = evenly(range(len(sample.keys)), _TYPICAL_PHOTOS)
    found = neighbours.nearest(sample.embedding[typical], 2)  # a published photo is its own nearest
    nearness = [
        _nearness(
            [photo for photo in near if photo.key != sample.keys[row]],
            sample.embedding[row],
            sample.residual[row],
        )
        for row, near in zip(typical, found, strict=True)
    ]
    return np.sort(nearness)


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
    embedding = matrix(rows["embedding"].combine_chunks())
    return EmbeddedPhotos(rows["key"].to_pylist(), rows["label"].to_pylist(), embedding, rows["residual"].to_numpy())
