"""How good the classifier is: accuracy, calibration, sets, photos of kinds that it never saw, photos of another domain.

    .venvs/jobs/bin/python benchmarks/classify.py

Needs the photos of `../shared/fruits` (`Training` and `Test`) and `../shared/photos` (shop photos), or folders like
them, and the default backbone, which it builds. Prints figures with their goals, and writes
`build/bench/classify.json`. Shares have 95 % intervals in brackets where photos are few. Runs in the jobs environment.
"""

import argparse
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.figure import Figure, figure
from benchmarks.parts import measured
from fruits.analysis.classifier import Classifier, Sample, fit_classifier
from fruits.analysis.gates import wilson_interval
from fruits.analysis.labels import sums_of
from fruits.analysis.moments import moments_of
from fruits.analysis.pca import PCA, fit, transform, whiten
from fruits.analysis.probe import fit_classifier as fit_logistic
from fruits.backbones.runtime import Backbone
from fruits.backbones.stage import load_backbone, staged_card
from fruits.errors import FruitsError
from fruits.photos.decode import Limits, decode, needed_side, preprocess
from fruits.serve.identify import LEAST_FAMILIAR
from fruits.settings import Settings

SHARED = Path(__file__).resolve().parents[2] / "shared"
SAME = {"Passion-Fruit": "Passion Fruit", "Red-Grapefruit": "Grapefruit"}
MIXED = (0, 1, 3)  # shop photos of a kind that are mixed into the lake
FEWEST_FEATURES = 2

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Photos:
    """Features of photos, shape ``(n, d)``, and their labels."""

    vectors: Vectors
    labels: NDArray[np.str_]

    def where(self, chosen: NDArray[np.bool_]) -> "Photos":
        """Some of the photos."""
        return Photos(self.vectors[chosen], self.labels[chosen])

    def __add__(self, other: "Photos") -> "Photos":
        """The photos of both."""
        return Photos(np.concatenate([self.vectors, other.vectors]), np.concatenate([self.labels, other.labels]))


@dataclass(frozen=True)
class Engine:
    """What a publication knows: classifier, PCA, whitened directions of its photos, and how near these are."""

    classifier: Classifier
    pca: PCA
    directions: Vectors
    typical: NDArray[np.float64]

    @classmethod
    def of(cls, fitted: Photos, held_out: Photos) -> "Engine":
        """The engine that a run over photos publishes."""
        vectors = np.concatenate([fitted.vectors, held_out.vectors])
        labels = [*fitted.labels.tolist(), *held_out.labels.tolist()]
        is_fitted = np.arange(len(vectors)) < len(fitted.vectors)
        sample = Sample([f"{label}/{n:06}" for n, label in enumerate(labels)], labels, is_fitted, vectors)
        moments = moments_of(fitted.vectors)
        classifier = fit_classifier(moments, sums_of(fitted.vectors, fitted.labels.tolist()), sample)
        pca = fit(moments, 0.95, 160)
        engine = cls(classifier, pca, directions(pca, vectors)[0], np.empty(0))
        return cls(classifier, pca, engine.directions, np.sort(engine.nearness(vectors, own=True)))

    def nearness(self, vectors: Vectors, *, own: bool = False) -> NDArray[np.float64]:
        """Whitened cosine with the nearest photo, as `identify` has it; ``own``: these are the photos themselves."""
        found, kept = directions(self.pca, vectors)
        cosines = found @ self.directions.T
        if own:
            np.fill_diagonal(cosines, -1)
        nearness: NDArray[np.float64] = cosines.max(axis=1) * kept
        return nearness

    def familiarity(self, vectors: Vectors) -> NDArray[np.float64]:
        """Share of the engine's photos that are no nearer to another one."""
        places = np.searchsorted(self.typical, self.nearness(vectors), side="right")
        return places / len(self.typical)

    def likeliest(self, vectors: Vectors) -> NDArray[np.str_]:
        """The likeliest label of each photo."""
        likeliest: NDArray[np.str_] = np.asarray(self.classifier.labels)[
            self.classifier.probabilities(vectors).argmax(axis=1)
        ]
        return likeliest


def directions(pca: PCA, vectors: Vectors) -> tuple[Vectors, NDArray[np.float64]]:
    """Whitened embeddings of length 1, and which share of a feature's length the components keep."""
    embedding, residual = transform(pca, vectors)
    whitened, length = whiten(pca, embedding), np.linalg.norm(embedding, axis=1)
    kept = length / np.maximum(np.hypot(length, residual), 1e-12)
    return whitened / np.maximum(np.linalg.norm(whitened, axis=1, keepdims=True), 1e-12), kept


def main(argv: Sequence[str] | None = None) -> int:
    """Read the photos, then measure; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fruits", type=Path, default=SHARED / "fruits", help="Training and Test (%(default)s)")
    parser.add_argument("--photos", type=Path, default=SHARED / "photos", help="photos of a shop (%(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        settings = staged(folder)
        training, test, shop = (
            features(settings, photos) for photos in (args.fruits / "Training", args.fruits / "Test", args.photos)
        )
    parts = (
        partial(of_known_kinds, training, test),
        partial(of_unseen_kinds, training, test),
        partial(of_another_domain, training, test, shop),
    )
    return int(not all(one["pass"] for one in measured(parts, "classify")))


def staged(folder: str) -> Settings:
    """A lake in a folder, with its backbone; TensorFlow builds that in a process of its own."""
    place = {"lake": f"file://{folder}/lake", "catalog_uri": f"sqlite:///{folder}/catalog.db"}
    variables = {**os.environ, **{f"FRUITS_{name.upper()}": value for name, value in place.items()}}
    command = [sys.executable, "-m", "fruits.backbones.stage"]
    subprocess.run(command, check=True, env=variables, stdout=subprocess.DEVNULL)  # noqa: S603 -- our own program
    return Settings.load(**place)


def features(settings: Settings, folder: Path) -> Photos:
    """The features of the photos in a folder, `<label>/*.jpg`."""
    paths = sorted(folder.glob("*/*.jpg"))
    if not paths:
        sys.exit(f"ABSENT: no photos in {folder}; expected <label>/*.jpg")
    card = staged_card(settings)
    if card is None:
        raise FruitsError(f"backbone: not staged in {settings.lake}")
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        vectors = list(pool.map(partial(feature, settings, card.model_id), paths, chunksize=50))
    return Photos(np.stack(vectors), np.array([path.parent.name for path in paths]))


def feature(settings: Settings, model_id: str, path: Path) -> Vectors:
    """The feature of a photo."""
    loaded = backbone(settings, model_id)
    preprocessing = loaded.card.preprocessing
    image = decode(path.read_bytes(), Limits(10**9, 10**9), needed_side(preprocessing)).image
    return loaded.features(preprocess(image, preprocessing))


@cache
def backbone(settings: Settings, model_id: str) -> Backbone:
    """The backbone, once for each process."""
    return load_backbone(settings, model_id)


def of_known_kinds(training: Photos, test: Photos) -> Iterator[Figure]:
    """Photos of labels that the fit knows: `Test`, of which a half calibrates and the other half is scored."""
    classifier = Engine.of(training, test).classifier
    what = f"{len(training.labels):,} photos of {len(classifier.labels)} labels, {len(test.labels):,} held out"
    columns = np.searchsorted(classifier.labels, test.labels)
    accuracy = float(np.mean(classifier.probabilities(test.vectors).argmax(axis=1) == columns))
    yield figure(f"{what}: accuracy", accuracy, least=0.99)
    logistic = fit_logistic(training.vectors, training.labels.tolist()).logits(test.vectors).argmax(axis=1)
    yield figure("  the same by logistic regression on the features", float(np.mean(logistic == columns)))
    pca = fit(moments_of(training.vectors), 0.95, 160)
    embedded, asked = transform(pca, training.vectors)[0], transform(pca, test.vectors)[0]
    logistic = fit_logistic(embedded, training.labels.tolist()).logits(asked).argmax(axis=1)
    yield figure("  the same by logistic regression on the embeddings", float(np.mean(logistic == columns)))
    means = np.stack([training.vectors[training.labels == label].mean(0) for label in classifier.labels])
    nearest = np.argmin(((test.vectors[:, None] - means[None]) ** 2).sum(-1), axis=1)
    yield figure("  the same by the nearest mean of a label", float(np.mean(nearest == columns)))
    yield figure("  shrinkage", classifier.discriminant.shrinkage)
    quality = classifier.quality
    if quality is None:
        return
    yield figure(f"  calibration error on the other half ({quality.n} photos)", quality.calibration_error, most=0.03)
    error = classifier.calibration.error
    allowed = 0.01 + 2 * math.sqrt(error * (1 - error) / quality.n)
    yield figure("  coverage of the sets on that half", quality.coverage, least=1 - error - allowed)
    yield figure("  labels of a set", quality.labels_of_set)


def of_unseen_kinds(training: Photos, test: Photos) -> Iterator[Figure]:
    """Each label in turn is left out of the lake, and its photos are asked, with those of the other labels."""
    scores, unknown, right = [], [], []
    for label in np.unique(training.labels):
        known = test.where(test.labels != label)
        # Half of the known held-out photos are published with the others; the other half is asked.
        published = np.arange(len(known.labels)) % 2 == 0
        engine = Engine.of(training.where(training.labels != label), known.where(published))
        asked = known.where(~published) + test.where(test.labels == label)
        scores.append(engine.familiarity(asked.vectors))
        unknown.append(asked.labels == label)
        right.append(engine.likeliest(asked.vectors) == asked.labels)
    familiarity, unseen = np.concatenate(scores), np.concatenate(unknown)
    kept, good = familiarity >= LEAST_FAMILIAR, np.concatenate(right)
    what = "a kind that was left out, against the others: AUROC of familiarity"
    yield figure(what, auroc(familiarity, unseen), least=0.992)
    taken = float(np.mean(kept[unseen]))
    yield figure(f"  taken for a known kind, at a familiarity of {LEAST_FAMILIAR}", taken, most=0.015)
    yield figure("  of the known: right and kept", float(np.mean((kept & good)[~unseen])), least=0.90)


def auroc(familiarity: NDArray[np.float64], unseen: NDArray[np.bool_]) -> float:
    """Probability that a known photo is more familiar than an unseen one."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(~unseen, familiarity))


def of_another_domain(training: Photos, test: Photos, shop: Photos) -> Iterator[Figure]:
    """Shop photos of kinds that the lake has, with none, one and three photos of each such kind in the lake."""
    kinds = {label: matching(label, np.unique(training.labels).tolist()) for label in np.unique(shop.labels).tolist()}
    shop = shop.where(np.array([bool(kinds[label]) for label in shop.labels.tolist()]))
    number = np.array([int((shop.labels[:n] == label).sum()) for n, label in enumerate(shop.labels)])
    for mixed in MIXED:
        joined = Photos(shop.vectors, np.array([kinds[label][0] for label in shop.labels.tolist()]))
        engine = Engine.of(training + joined.where(number < mixed), test)
        asked = shop.where(number >= max(MIXED))
        yield from answers(engine, asked, kinds, mixed)


def matching(label: str, labels: Sequence[str]) -> list[str]:
    """The lake's labels of a kind of the shop: `Apple Red 1` and `Golden 1` are apples."""
    kind = SAME.get(label, label)
    apples = ("Apple", "Braeburn", "Golden", "Granny")
    if kind == "Apple":
        return [one for one in labels if one.startswith(apples)]
    return [one for one in labels if one == kind or one.startswith(f"{kind} ")]


def answers(engine: Engine, asked: Photos, kinds: dict[str, list[str]], mixed: int) -> Iterator[Figure]:
    """What becomes of shop photos."""
    likeliest, familiarity = engine.likeliest(asked.vectors), engine.familiarity(asked.vectors)
    right = np.array([one in kinds[label] for one, label in zip(likeliest, asked.labels.tolist(), strict=True)])
    known, n = familiarity >= LEAST_FAMILIAR, len(right)
    confidence = engine.classifier.probabilities(asked.vectors).max(axis=1)
    what = f"{n} shop photos of {len(np.unique(asked.labels))} kinds, {mixed} of each kind in the lake"

    def share(name: str, chosen: NDArray[Any], most: float | None = None) -> Figure:
        low, high = wilson_interval(float(np.mean(chosen)), n)
        return figure(f"{what}: {name} [{low:.2f}, {high:.2f}]", float(np.mean(chosen)), most=most)

    yield share("likeliest label right", right)
    yield share("unknown", ~known)
    yield share("known, and confident (0.5) and wrong", known & ~right & (confidence >= 0.5), most=0.05)  # noqa: PLR2004


if __name__ == "__main__":
    sys.exit(main())
