"""How good the file for phones is: parity with the engine on the server, its size, and kinds that it never saw.

    .venvs/jobs/bin/python -m benchmarks.mobile

Needs the photos of `../shared/fruits` (`Training` and `Test`) and `../shared/photos` (shop photos), or folders like
them, and the backbone of FRUITS_PRECISION, which it builds. Prints figures with their goals, and writes
`build/bench/mobile.json` (`mobile-int8.json` for integers). Runs in the jobs environment.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.classify import SHARED, Engine, Photos, auroc, backbone, directions, paths, photos, staged
from benchmarks.figure import Figure, figure
from benchmarks.parts import measured
from fruits.analysis.prototypes import Photos as Published
from fruits.analysis.prototypes import Prototypes, fit_prototypes, similarity
from fruits.backbones.card import Preprocessing
from fruits.backbones.stage import staged_card
from fruits.errors import FruitsError
from fruits.photos.decode import Limits, decode, needed_side, preprocess
from fruits.serve import mobile
from fruits.serve.mobile import PROTOTYPES, mobile_model
from fruits.settings import Settings

ASKED = 500
COUNTS = (1, 4, 8, PROTOTYPES, 32)
MOST_BYTES = 6_000_000  # of a file with an integer backbone

Pixels = NDArray[np.uint8]
Resize = Callable[[Image.Image, Preprocessing], Pixels]


def main(argv: Sequence[str] | None = None) -> int:
    """Read the photos, then measure; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fruits", type=Path, default=SHARED / "fruits", help="Training and Test (%(default)s)")
    parser.add_argument("--photos", type=Path, default=SHARED / "photos", help="photos of a shop (%(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        settings = staged(folder)
        training, test = (photos(settings, paths(args.fruits / name)) for name in ("Training", "Test"))
        shop = sorted(args.photos.glob("*/*.jpg"))
        parts = {
            "file": partial(of_the_file, settings, training, test, args.fruits / "Test", shop),
            "unseen": partial(of_unseen_kinds, training, test),
        }
        name = "mobile" if settings.precision == "fp32" else f"mobile-{settings.precision}"
        return int(not all(one["pass"] for one in measured(parts, name)))


def of_the_file(
    settings: Settings, training: Photos, test: Photos, folder: Path, shop: Sequence[Path]
) -> Iterator[Figure]:
    """Size of the file, parity with the engine, and what other ways to resize a photo change."""
    card = staged_card(settings)
    if card is None:
        raise FruitsError(f"backbone: not staged in {settings.lake}")
    server, loaded = Engine.of(training, test), backbone(settings, card.model_id)
    prototypes = prototypes_of(server, training, test, PROTOTYPES)
    flatbuffer = mobile_model(mobile.Parts(loaded, server.classifier, server.pca, "pub-000001", "pca"), prototypes)
    most = MOST_BYTES if settings.precision == "int8" else None
    yield figure(f"{card.model_id}: the file", len(flatbuffer), "bytes", most=most)
    yield figure("  the backbone in it", len(loaded.flatbuffer), "bytes")
    paths = sorted(folder.glob("*/*.jpg"))
    asked = [paths[place] for place in np.linspace(0, len(paths) - 1, min(ASKED, len(paths))).astype(int)]
    run = runner(flatbuffer)
    for what, chosen in ((f"{len(asked)} photos of Test", asked), (f"{len(shop)} shop photos", shop)):
        images = [
            decode(path.read_bytes(), Limits(10**9, 10**9), needed_side(card.preprocessing)).image for path in chosen
        ]
        pixels = [preprocess(image, card.preprocessing) for image in images]
        expected = server.classifier.probabilities(np.stack([loaded.features(one) for one in pixels]))
        found = np.concatenate([run(pixels=one[np.newaxis])["probabilities"] for one in pixels])
        yield figure(f"{what}: same label as identify", same(found, expected), least=0.995)
        yield figure("  largest difference of a probability", float(np.abs(found - expected).max()), most=1e-3)
        for name, resize in RESIZES.items():
            other = [run(pixels=resize(image, card.preprocessing)[np.newaxis])["probabilities"] for image in images]
            yield figure(f"  {name}: same label", same(np.concatenate(other), expected))


def same(found: NDArray[np.floating[Any]], expected: NDArray[np.floating[Any]]) -> float:
    """Share of rows with the same likeliest label."""
    return float(np.mean(found.argmax(axis=1) == expected.argmax(axis=1)))


def runner(flatbuffer: bytes) -> Callable[..., Mapping[str, NDArray[np.float32]]]:
    """What runs a flatbuffer, with outputs by name."""
    from ai_edge_litert.interpreter import Interpreter

    run: Callable[..., Mapping[str, NDArray[np.float32]]]
    run = Interpreter(model_content=flatbuffer, num_threads=1).get_signature_runner()
    return run


def cropped(size: Preprocessing, width: int, height: int) -> tuple[float, float, float, float]:
    """The part of a photo that the backbone sees, as left, top, right and bottom."""
    if size.crop_share is None:
        return 0, 0, width, height
    side = size.crop_share * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def averaged(image: Image.Image, size: Preprocessing) -> Pixels:
    """Crop, then a bilinear filter over all pixels that it merges."""
    box = cropped(size, *image.size)
    return np.asarray(image.resize((size.width, size.height), Image.Resampling.BILINEAR, box=box))


def plain(image: Image.Image, size: Preprocessing) -> Pixels:
    """Crop, then plain bilinear: four pixels for each new one, as `Bitmap.createScaledBitmap` does."""
    box, bilinear = cropped(size, *image.size), Image.Resampling.BILINEAR
    return np.asarray(image.transform((size.width, size.height), Image.Transform.EXTENT, box, bilinear))


def whole(image: Image.Image, size: Preprocessing) -> Pixels:
    """The whole photo without a crop, plain bilinear, as MediaPipe does without a region of interest."""
    box, bilinear = (0, 0, *image.size), Image.Resampling.BILINEAR
    return np.asarray(image.transform((size.width, size.height), Image.Transform.EXTENT, box, bilinear))


RESIZES: Mapping[str, Resize] = {
    "cropped, bilinear with averaging": averaged,
    "cropped, plain bilinear": plain,
    "not cropped, plain bilinear": whole,
}


def prototypes_of(engine: Engine, fitted: Photos, held_out: Photos, count: int) -> Prototypes:
    """The prototypes of an engine."""
    photos, is_fitted = fitted + held_out, len(fitted.labels)
    published = Published(
        directions(engine.pca, photos.vectors)[0], photos.labels, np.arange(len(photos.labels)) >= is_fitted
    )
    return fit_prototypes(engine.classifier.labels, published, count)


def of_unseen_kinds(training: Photos, test: Photos) -> Iterator[Figure]:
    """Each label in turn is left out and asked, as in `benchmarks/classify.py`; here by prototypes."""
    nearness: dict[int, list[NDArray[np.float64]]] = {count: [] for count in COUNTS}
    kept: dict[int, list[NDArray[np.bool_]]] = {count: [] for count in COUNTS}
    unknown, right, searched = [], [], []
    for label in np.unique(training.labels):
        known, fitted = test.where(test.labels != label), training.where(training.labels != label)
        published = np.arange(len(known.labels)) % 2 == 0
        engine = Engine.of(fitted, known.where(published))
        asked = known.where(~published) + test.where(test.labels == label)
        unknown.append(asked.labels == label)
        right.append(engine.likeliest(asked.vectors) == asked.labels)
        searched.append(engine.nearness(asked.vectors))
        for count in COUNTS:
            prototypes = prototypes_of(engine, fitted, known.where(published), count)
            greatest = similarity(prototypes.directions, directions(engine.pca, asked.vectors)[0]).max(axis=1)
            nearness[count].append(greatest.astype(np.float64))
            kept[count].append(greatest >= prototypes.threshold)
    unseen, good = np.concatenate(unknown), np.concatenate(right)
    what = "a kind that was left out, the nearest of all photos, as on the server: AUROC"
    yield figure(what, auroc(np.concatenate(searched), unseen))
    for count in COUNTS:
        known_ones = np.concatenate(kept[count])
        what = f"a kind that was left out, {count} prototypes a label: AUROC of the greatest similarity"
        yield figure(what, auroc(np.concatenate(nearness[count]), unseen))
        yield figure("  taken for a known kind, at the threshold in the file", float(np.mean(known_ones[unseen])))
        yield figure("  of the known: right and kept", float(np.mean((known_ones & good)[~unseen])))


if __name__ == "__main__":
    sys.exit(main())
