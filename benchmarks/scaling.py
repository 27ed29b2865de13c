"""What a run costs at 100,000, a million and a hundred million photos: a model, and the figures that it is fed.

Measures on this machine, on one core each, what grows with the number of photos (listing, planning, GET to feature,
moments, projection, bytes of a row), and multiplies. What it does not measure is an option with a default: the seconds
of a Spark session, and of one LIST page of S3. Needs the jobs environment.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fruits.analysis.moments import merge, moments_of
from fruits.analysis.pca import fit, transform
from fruits.backbones.stage import load_backbone, stage
from fruits.lake.schemas import TIMESTAMP
from fruits.photos.entry import Action, Entry
from fruits.photos.featurize import featurize_entries
from fruits.photos.fetch import PhotoServer
from fruits.photos.keys import KeyRules
from fruits.photos.listing import list_objects
from fruits.run.joining import joined
from fruits.run.reconciliation import Ignored, make_plan
from fruits.run.request import RunRequest
from fruits.settings import Settings
from local.mirror import mirror
from local.stack import environment_of, temporary_stack
from sample_photos import generate

WIDTH = 1280
GB = 1e9
RANGES_FASTER = 7.8  # the plan's listing in ranges against one stream: `make bench-growth ARGS=plan`
LISTINGS = 1 + 1 / RANGES_FASTER  # of each sweep: one stream by the sensor of uploads, and the plan's own
PAGE = 1_000  # keys of one LIST
SIZES = (100_000, 1_000_000, 100_000_000)
NOW = datetime(2026, 11, 25, tzinfo=UTC)


@dataclass(frozen=True)
class Costs:
    """Seconds of one core, and bytes, for one photo unless its name says otherwise."""

    list: float
    plan: float
    featurize: float
    moments: float
    project: float
    fit_once: float
    merge_once: float
    feature_bytes: float
    embedding_bytes: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print figures and model."""
    args = parse_args(argv)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    costs = measure(args.photos, args.keys, args.components)
    print_costs(costs)
    print_model(costs, args)
    return 0


def measure(photos: int, keys: int, components: int) -> Costs:
    """All figures."""
    rows = np.random.default_rng(0).standard_normal((20_000, WIDTH), dtype=np.float32)
    moments = moments_of(rows)
    pca = fit(moments, components)
    embedded, _ = transform(pca, rows)
    listing, featurizing = from_bucket(photos)
    return Costs(
        list=listing,
        plan=planning(keys),
        featurize=featurizing,
        moments=best(lambda: moments_of(rows)) / len(rows),
        project=best(lambda: transform(pca, rows)) / len(rows),
        fit_once=best(lambda: fit(moments, components)),
        merge_once=best(lambda: merge(moments, moments)),
        feature_bytes=stored_bytes(rows),
        embedding_bytes=stored_bytes(embedded),
    )


def planning(keys: int) -> float:
    """Seconds for each of so many unchanged photos."""
    rules, request = (
        KeyRules.of(Settings.load(lake="file:///lake", catalog_uri="sqlite:////catalog.db")),
        RunRequest(prefix=""),
    )
    ignored = Ignored.by(rules, request)
    started = time.perf_counter()
    with joined() as pairs:
        pairs.add("known", unchanged(keys))
        pairs.add("listed", ignored.others(unchanged(keys)))
        plan = make_plan(pairs, ignored, rules, request, same_rules=True)
        spent = time.perf_counter() - started
        if plan.counts[Action.UNCHANGED] != keys:
            raise AssertionError("the plan found work where there is none")
        return spent / keys


def unchanged(keys: int) -> Iterator[pa.RecordBatch]:
    """So many photos, as a listing and as rows of the tables."""
    for start in range(0, keys, PAGE):
        numbers = range(start, min(keys, start + PAGE))
        columns = {
            "key": [f"Training/Kiwi/{n:09}.jpg" for n in numbers],
            "etag": [f"{n:032x}" for n in numbers],
            "size": [5_000] * len(numbers),
            "last_modified": pa.array([NOW] * len(numbers), TIMESTAMP),
            "label": ["Kiwi"] * len(numbers),
            "split": ["train"] * len(numbers),
        }
        yield pa.RecordBatch.from_pydict(columns)


def from_bucket(photos: int) -> tuple[float, float]:
    """Seconds of listing and of GET to feature for each photo, against an S3 server on this machine."""
    with tempfile.TemporaryDirectory() as folder, temporary_stack(Path(folder)) as stack, environment_of(stack):
        server = stack.client()
        for n in range(2 * PAGE):
            server.put_object(Bucket=stack.environment["FRUITS_BUCKET"], Key=f"listed/{n}.jpg", Body=b"")
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # one core for us, the server has the others
        kinds = 16
        generate(Path(folder) / "photos", kinds=kinds, per_kind_train=max(1, photos // kinds), per_kind_test=1)
        settings = Settings.load()
        listing = best(lambda: list(list_objects(settings, "listed/"))) / (2 * PAGE)
        mirror(Path(folder) / "photos", settings.model_copy(update={"prefix": "photos/"}), lambda *_: None)
        listed = list(list_objects(settings, "photos/"))
        backbone = load_backbone(settings, stage(settings).model_id)
        entries = [Entry(one.key, one.etag, one.size, one.last_modified, Action.CREATE, "x", "train") for one in listed]
        featurizing = best(lambda: list(featurize_entries(entries, PhotoServer(settings), backbone, settings)), times=2)
        return listing, featurizing / len(listed)


def stored_bytes(vectors: np.ndarray[Any, Any]) -> float:
    """Bytes of a row's vector in Parquet, as the tables store it."""
    with tempfile.TemporaryDirectory() as folder:
        column = pa.array(list(vectors), pa.list_(pa.float32()))
        pq.write_table(pa.table({"vector": column}), Path(folder) / "rows.parquet", compression="zstd")
        return (Path(folder) / "rows.parquet").stat().st_size / len(vectors)


def best(work: Callable[[], object], times: int = 3) -> float:
    """The least seconds that ``work`` takes."""

    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return min(once() for _ in range(times))


def print_costs(costs: Costs) -> None:
    """What was measured."""
    print("measured, on one core")
    print(f"  list        {1e3 * costs.list * PAGE:8.1f} ms of 1,000 keys, S3 server on this machine")
    print(f"  plan        {1e6 * costs.plan:8.1f} µs, a photo that is known")
    print(f"  featurize   {1 / costs.featurize:8.0f} photos/s, GET to feature")
    print(f"  moments     {1 / costs.moments:8,.0f} rows/s")
    print(f"  project     {1 / costs.project:8,.0f} rows/s")
    print(
        f"  fit         {costs.fit_once:8.2f} s, merging {1e3 * costs.merge_once:.0f} ms, whatever the number of photos"
    )
    print(f"  stored      {costs.feature_bytes:8,.0f} bytes of a feature, {costs.embedding_bytes:,.0f} of an embedding")


def print_model(costs: Costs, args: argparse.Namespace) -> None:
    """The model: seconds of wall time, for so many cores of executors."""
    assumed = f"{args.session:g} s a Spark session, {1e3 * args.page:g} ms a LIST page of S3"
    print(f"\nmodel: {args.cores} executor cores, {assumed}")
    header = (
        "photos",
        "list",
        "plan",
        "first run",
        f"+{args.increment:,}",
        "by events",
        "refit",
        "features",
        "embeddings",
    )
    print("".join(f"{name:>13}" for name in header))
    for n in SIZES:
        listing = n / PAGE * (args.page + costs.list * PAGE)
        planning_seconds = n * costs.plan
        fixed = 3 * args.session + costs.fit_once
        first = (
            fixed
            + LISTINGS * listing
            + planning_seconds
            + n * (costs.featurize + costs.moments + costs.project) / args.cores
        )
        by_events = 3 * args.session
        by_events += args.increment * (costs.featurize + costs.moments + costs.project) / args.cores
        increment = by_events + LISTINGS * listing + planning_seconds
        refit = costs.fit_once + n * costs.project / args.cores
        cells = (
            f"{n:,}", duration(listing), duration(planning_seconds), duration(first), duration(increment),
            duration(by_events), duration(refit), size(n * costs.feature_bytes), size(n * costs.embedding_bytes),
        )  # fmt: skip
        print("".join(f"{cell:>13}" for cell in cells))


def duration(seconds: float) -> str:
    """Seconds, minutes, hours or days: whichever reads best."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def size(count: float) -> str:
    """Bytes as GB or MB."""
    return f"{count / GB:,.1f} GB" if count >= GB else f"{count / 1e6:,.0f} MB"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=512, help="photos to featurize (%(default)s)")
    parser.add_argument("--keys", type=int, default=500_000, help="keys to plan with (%(default)s)")
    parser.add_argument("--components", type=int, default=128, help="of the PCA (%(default)s)")
    parser.add_argument("--increment", type=int, default=1_000, help="photos of an increment (%(default)s)")
    parser.add_argument("--cores", type=int, default=8, help="cores of all executors (%(default)s)")
    parser.add_argument("--session", type=float, default=8.0, help="seconds to start a Spark session (%(default)s)")
    parser.add_argument("--page", type=float, default=0.15, help="seconds of S3 for one LIST page (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
