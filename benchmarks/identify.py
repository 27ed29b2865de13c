"""How good and how fast is `identify`? Half of the photos are published by a real run of the chain, the others asked.

Takes a folder with `<label>/*.jpg`, of which every other photo of a label is published, or one with
`Training/<label>/*.jpg`, which is published, and `Test/<label>/*.jpg`, which is asked. Prints: the share of photos
whose likeliest label is right, beside that of the linear probe fitted on the published embeddings and scored on the
others'; how often confidences of each size are right; how familiar the photos are; and what it costs, in seconds of CPU
and of the clock. Ends with 1 when `identify` is more than 0.02 below the probe. Run it in the jobs environment, with
the airflow environment beside it; publishing takes minutes.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np

from fruits.analysis.pca import transform
from fruits.analysis.probe import probe_accuracy
from fruits.backbones.stage import load_backbone
from fruits.lake.catalog import Lake
from fruits.lake.pca_tables import load_versions
from fruits.lake.reader import PublishedRows, current_publication
from fruits.photos.decode import Limits, decode, needed_side, preprocess
from fruits.serve.identify import Engine, Identification, identify_files
from fruits.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
AIRFLOW_PYTHON = Path(sys.prefix).parent / "airflow" / "bin" / "python"
MOST_BELOW = 0.02
EDGES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Publish, ask, print."""
    args = parse_args(argv)
    published, asked = halves(args.photos)
    with data_folder(args.data) as data:
        publish(published, data)
        settings = Settings.load(lake=f"file://{data}/lake", catalog_uri=f"sqlite:///{data}/catalog.db")
        print(f"\n{args.photos}: {len(published)} photos published, {len(asked)} asked")
        found = measured(settings, asked)
        truth = [path.parent.name for path in asked]
        accuracy, probe = right(found, truth).mean(), probe_of(settings, asked, truth)
    for line in qualities(found, truth):
        print(f"  {line}")
    print(f"  right by the linear probe                 {probe:.3f}")
    print(f"  identify - probe                          {accuracy - probe:+.3f}, at least {-MOST_BELOW}")
    return int(accuracy < probe - MOST_BELOW)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT.parent / "shared" / "photos"
    parser.add_argument("photos", type=Path, nargs="?", default=default, help="folder of photos (default %(default)s)")
    parser.add_argument("--data", type=Path, help="keep the lake here; a second time there is nothing left to publish")
    return parser.parse_args(argv)


def halves(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """The photos to publish by object key, and those to ask about."""
    if (folder / "Training").is_dir():
        published, asked = ([*by_label(folder / split, 0, 1)] for split in ("Training", "Test"))
    else:
        published, asked = ([*by_label(folder, start, 2)] for start in (0, 1))
    if not published or not asked:
        sys.exit(f"ABSENT: no photos in {folder}; expected <label>/*.jpg, or Training and Test with that in them")
    return {f"Training/{path.parent.name}/{path.name}": path for path in published}, asked


def by_label(folder: Path, start: int, step: int) -> Iterator[Path]:
    """Every ``step``-th photo of each label, from number ``start`` on."""
    for label in sorted(folder.glob("*/")):
        yield from sorted(label.glob("*.jpg"))[start::step]


@contextmanager
def data_folder(kept: Path | None) -> Iterator[Path]:
    """A folder for the embedded stack."""
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def publish(photos: dict[str, Path], data: Path) -> None:
    """Run the chain over ``photos``, as `make run` does."""
    with tempfile.TemporaryDirectory() as images:
        for key, path in photos.items():
            target = Path(images) / key
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        command = [str(AIRFLOW_PYTHON), "-m", "local", "--data", str(data), "run", "--images", images]
        subprocess.run([*command, "--summary", str(data / "summary.json")], cwd=ROOT, check=True)  # noqa: S603 -- ours


def measured(settings: Settings, photos: Sequence[Path]) -> list[Identification]:
    """What `identify` says of the photos; prints what the first one costs, and each one more."""
    marks = [(time.process_time(), time.perf_counter())]
    for asked in (photos[:1], photos[:1], photos):
        found = [one for one in identify_files(Engine.load(settings), asked) if isinstance(one, Identification)]
        marks.append((time.process_time(), time.perf_counter()))
    cold, warm, all_of_them = np.diff(marks, axis=0)
    each = (all_of_them - warm) / max(1, len(photos) - 1)
    for what, (cpu, clock), unit in (("first call of a process", cold, "s"), ("next call, one photo", warm, "s")):
        print(f"  {what:<41} {cpu:.2f} {unit} of CPU, {clock:.2f} {unit}")
    print(f"  {'each photo more':<41} {each[0] * 1e3:.0f} ms of CPU, {each[1] * 1e3:.0f} ms")
    return found


def probe_of(settings: Settings, photos: Sequence[Path], truth: Sequence[str]) -> float:
    """Accuracy on ``photos`` of the linear probe fitted on the published embeddings."""
    lake = Lake.open(settings)
    publication = current_publication(lake)
    rows = list(PublishedRows(lake, publication, "embeddings", ("label", "embedding")).batches())
    fit_rows = np.array([vector for batch in rows for vector in batch["embedding"].to_pylist()], dtype=np.float32)
    fit_labels = [label for batch in rows for label in batch["label"].to_pylist()]
    backbone = load_backbone(settings, str(publication.model_id))
    versions = load_versions(lake, publication.snapshots["pca_models"], str(publication.model_id))
    (pca,) = (version.pca for version in versions if version.pca_id == publication.pca_id)
    preprocessing, limits = backbone.card.preprocessing, Limits(10**9, 10**9)
    images = (decode(path.read_bytes(), limits, needed_side(preprocessing)).image for path in photos)
    embedding, _ = transform(pca, np.stack([backbone.features(preprocess(image, preprocessing)) for image in images]))
    return probe_accuracy(fit_rows, fit_labels, embedding, truth) or 0.0


def right(found: Sequence[Identification], truth: Sequence[str]) -> np.ndarray:
    """Whether the likeliest label is right, one for each photo."""
    return np.array([one.label == label for one, label in zip(found, truth, strict=True)])


def qualities(found: Sequence[Identification], truth: Sequence[str]) -> Iterator[str]:
    """Lines on accuracy, confidence and familiarity."""
    hits = right(found, truth)
    among = [label in dict(one.labels) for one, label in zip(found, truth, strict=True)]
    nearest = [one.nearest[0].label == label for one, label in zip(found, truth, strict=True)]
    yield f"right                                     {hits.mean():.3f}"
    yield f"right label among the first five          {np.mean(among):.3f}"
    yield f"nearest photo has the right label         {np.mean(nearest):.3f}"
    confidence = np.array([one.confidence for one in found])
    error = 0.0
    yield f"confidence, mean                          {confidence.mean():.3f}"
    for low, high in pairwise(EDGES):
        chosen = (confidence > low) & (confidence <= high)
        if chosen.any():
            error += chosen.mean() * abs(confidence[chosen].mean() - hits[chosen].mean())
            said = f"{low:.2f} to {high:.2f}: {chosen.sum():4} photos, mean {confidence[chosen].mean():.3f}"
            yield f"  {said:<39} right {hits[chosen].mean():.3f}"
    yield f"expected calibration error                {error:.3f}"
    familiarity = np.array([one.familiarity for one in found])
    low, middle = np.quantile(familiarity, (0.1, 0.5))
    yield f"familiarity, lowest tenth; median         {low:.2f}; {middle:.2f}"


if __name__ == "__main__":
    sys.exit(main())
