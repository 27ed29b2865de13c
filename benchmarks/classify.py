"""How good the classifier is: accuracy, calibration, sets, photos of kinds that it never saw, photos of another domain.

    .venvs/jobs/bin/python benchmarks/classify.py          # some parts: known unseen twins no_fruit shop augmented

Needs the photos of `../shared/fruits` (`Training` and `Test`) and `../shared/photos` (shop photos), or folders like
them, and the default backbone, which it builds. Prints figures with their goals, and writes
`build/bench/classify.json`. Shares have 95 % intervals in brackets where photos are few. Runs in the jobs environment.
"""

import io
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.figure import Figure, figure
from benchmarks.parts import chosen, measured, parser_of
from benchmarks.pictures import THINGS, VARIANTS, as_in_a_shop, jpeg, no_fruit
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
AUGMENTED = (1, 4)  # pictures made of each photo of the fit split
TWINS = re.compile(r"(.+) \d")
PARTS = ("known", "unseen", "twins", "no_fruit", "shop", "augmented")

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
    parser = parser_of(__doc__, PARTS)
    parser.add_argument("--fruits", type=Path, default=SHARED / "fruits", help="Training and Test (%(default)s)")
    parser.add_argument("--photos", type=Path, default=SHARED / "photos", help="photos of a shop (%(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        settings = staged(folder)
        fruits, test, shop = (paths(place) for place in (args.fruits / "Training", args.fruits / "Test", args.photos))
        training, held_out, of_shop = (photos(settings, some) for some in (fruits, test, shop))
        measures: dict[str, Callable[[], Iterator[Figure]]] = {
            "known": partial(of_known_kinds, training, held_out),
            "unseen": partial(of_unseen_kinds, training, held_out),
            "twins": partial(of_twins, training, held_out),
            "no_fruit": partial(of_no_fruit, settings, training, held_out),
            "shop": partial(of_another_domain, training, held_out, of_shop),
            "augmented": partial(of_augmented, settings, fruits, training, held_out, of_shop),
        }
        figures = measured(chosen(parser, args.parts, measures), "classify")
    return int(not all(one["pass"] for one in figures))


def staged(folder: str) -> Settings:
    """A lake in a folder, with its backbone; TensorFlow builds that in a process of its own."""
    place = {"lake": f"file://{folder}/lake", "catalog_uri": f"sqlite:///{folder}/catalog.db"}
    variables = {**os.environ, **{f"FRUITS_{name.upper()}": value for name, value in place.items()}}
    command = [sys.executable, "-m", "fruits.backbones.stage"]
    subprocess.run(command, check=True, env=variables, stdout=subprocess.DEVNULL)  # noqa: S603 -- our own program
    return Settings.load(**place)


def paths(folder: Path) -> list[Path]:
    """The photos in a folder, `<label>/*.jpg`."""
    found = sorted(folder.glob("*/*.jpg"))
    if not found:
        sys.exit(f"ABSENT: no photos in {folder}; expected <label>/*.jpg")
    return found


def photos(settings: Settings, some: Sequence[Path]) -> Photos:
    """The features of photos, and their labels."""
    vectors = features(settings, [partial(Path.read_bytes, path) for path in some])
    return Photos(vectors, np.array([path.parent.name for path in some]))


def features(settings: Settings, pictures: Sequence[Callable[[], bytes]]) -> Vectors:
    """The features of pictures, shape ``(n, d)``; each is a function that gives a file's bytes."""
    card = staged_card(settings)
    if card is None:
        raise FruitsError(f"backbone: not staged in {settings.lake}")
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        return np.stack(list(pool.map(partial(feature, settings, card.model_id), pictures, chunksize=50)))


def feature(settings: Settings, model_id: str, picture: Callable[[], bytes]) -> Vectors:
    """The feature of a picture."""
    loaded = backbone(settings, model_id)
    preprocessing = loaded.card.preprocessing
    image = decode(picture(), Limits(10**9, 10**9), needed_side(preprocessing)).image
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


def of_twins(training: Photos, test: Photos) -> Iterator[Figure]:
    """Labels that differ in their number only: are they told apart, or named together?

    Half of the held-out photos are published, and calibrate; the twins among the others are asked.
    """
    published = np.arange(len(test.labels)) % 2 == 0
    engine = Engine.of(training, test.where(published))
    twin = np.array([bool(TWINS.fullmatch(label)) for label in test.labels.tolist()])
    asked = test.where(~published & twin)
    sets = engine.classifier.sets(asked.vectors)
    truth = np.searchsorted(engine.classifier.labels, asked.labels)
    kinds = np.array([TWINS.sub(r"\1", label) for label in engine.classifier.labels])
    what = f"{len(asked.labels)} photos of near twins ({', '.join(np.unique(asked.labels).tolist())})"
    yield share(f"{what}: likeliest label right", engine.likeliest(asked.vectors) == asked.labels)
    yield share("  the set has the right label", sets[np.arange(len(truth)), truth], least=0.95)
    yield figure("  labels of a set", float(sets.sum(axis=1).mean()))
    strange = [bool((kinds[row] != kinds[right]).any()) for row, right in zip(sets, truth, strict=True)]
    yield share("  the set has a label that is no twin", np.array(strange))


def of_no_fruit(settings: Settings, training: Photos, test: Photos) -> Iterator[Figure]:
    """Pictures of things that are no fruit."""
    engine = Engine.of(training, test)
    pictures = [partial(picture_of_no_fruit, name, variant) for name in THINGS for variant in range(VARIANTS)]
    known = engine.familiarity(features(settings, pictures)) >= LEAST_FAMILIAR
    for name, some in zip(THINGS, np.split(known, len(THINGS)), strict=True):
        yield figure(f"{name}: unknown, of {VARIANTS} pictures", int((~some).sum()))
    yield share(f"{len(known)} pictures of no fruit: unknown", ~known, least=0.95)


def picture_of_no_fruit(name: str, variant: int) -> bytes:
    """The file of a picture of a thing."""
    return jpeg(no_fruit(name, variant))


def share(name: str, which: NDArray[Any], *, most: float | None = None, least: float | None = None) -> Figure:
    """The share of photos, with its 95 % interval."""
    value = float(np.mean(which))
    low, high = wilson_interval(value, len(which))
    return figure(f"{name} [{low:.2f}, {high:.2f}]", value, most=most, least=least)


def of_another_domain(training: Photos, test: Photos, shop: Photos) -> Iterator[Figure]:
    """Shop photos of kinds that the lake has, with none, one and three photos of each such kind in the lake."""
    shop, kinds = of_shared_kinds(training, shop)
    number = np.array([int((shop.labels[:n] == label).sum()) for n, label in enumerate(shop.labels)])
    for mixed in MIXED:
        joined = Photos(shop.vectors, np.array([kinds[label][0] for label in shop.labels.tolist()]))
        engine = Engine.of(training + joined.where(number < mixed), test)
        asked = shop.where(number >= max(MIXED))
        yield from answers(engine, asked, kinds, f", {mixed} of each kind in the lake", most=0.05)


def of_shared_kinds(training: Photos, shop: Photos) -> tuple[Photos, dict[str, list[str]]]:
    """The shop photos of kinds that the lake has, and the lake's labels of each kind of the shop."""
    kinds = {label: matching(label, np.unique(training.labels).tolist()) for label in np.unique(shop.labels).tolist()}
    return shop.where(np.array([bool(kinds[label]) for label in shop.labels.tolist()])), kinds


def of_augmented(
    settings: Settings, fruits: Sequence[Path], training: Photos, test: Photos, shop: Photos
) -> Iterator[Figure]:
    """All shop photos, when each photo of the fit split is also in the statistics as if taken in a shop.

    No shop photo is in the lake. The classifier alone knows the pictures, or PCA and neighbours as well.
    """
    shop, kinds = of_shared_kinds(training, shop)
    plain = Engine.of(training, test)
    yield from answers(plain, shop, kinds, ", no augmentation")
    truth = test.labels
    yield share("  studio photos, held out: likeliest label right", plain.likeliest(test.vectors) == truth)
    for each in AUGMENTED:
        start = time.perf_counter()
        pictures = [partial(augmented, path, number) for path in fruits for number in range(each)]
        more = Photos(features(settings, pictures), np.repeat(training.labels, each))
        seconds = time.perf_counter() - start
        engine = Engine.of(training + more, test)
        yield figure(f"{each} pictures of each photo: made and featurized", len(pictures) / seconds, "img/s")
        of_classifier = replace(plain, classifier=engine.classifier)
        yield from answers(of_classifier, shop, kinds, f", {each} pictures a photo, in the classifier")
        yield share("  studio photos, held out: likeliest label right", engine.likeliest(test.vectors) == truth)
        yield from answers(engine, shop, kinds, f", {each} pictures a photo, in PCA and neighbours too")


def augmented(path: Path, number: int) -> bytes:
    """The file of a studio photo as if taken in a shop."""
    photo = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    rng = np.random.default_rng([number, *f"{path.parent.name}/{path.name}".encode()])
    return jpeg(as_in_a_shop(photo, rng))


def matching(label: str, labels: Sequence[str]) -> list[str]:
    """The lake's labels of a kind of the shop: `Apple Red 1` and `Golden 1` are apples."""
    kind = SAME.get(label, label)
    apples = ("Apple", "Braeburn", "Golden", "Granny")
    if kind == "Apple":
        return [one for one in labels if one.startswith(apples)]
    return [one for one in labels if one == kind or one.startswith(f"{kind} ")]


def answers(
    engine: Engine, asked: Photos, kinds: dict[str, list[str]], lake: str, most: float | None = None
) -> Iterator[Figure]:
    """What becomes of shop photos, by a lake in words; at most the share ``most`` may be confident and wrong."""
    likeliest, familiarity = engine.likeliest(asked.vectors), engine.familiarity(asked.vectors)
    right = np.array([one in kinds[label] for one, label in zip(likeliest, asked.labels.tolist(), strict=True)])
    known = familiarity >= LEAST_FAMILIAR
    confidence = engine.classifier.probabilities(asked.vectors).max(axis=1)
    what = f"{len(right)} shop photos of {len(np.unique(asked.labels))} kinds{lake}"
    yield share(f"{what}: likeliest label right", right)
    yield share("  unknown", ~known)
    yield share("  known and right", known & right)
    yield share("  known, and confident (0.5) and wrong", known & ~right & (confidence >= 0.5), most=most)  # noqa: PLR2004
    yield share("  confident (0.5) and wrong, known or not", ~right & (confidence >= 0.5))  # noqa: PLR2004


if __name__ == "__main__":
    sys.exit(main())
