"""How fast, how good and how large is the index of nearest photos, among 1,000,000 photos?

    .venvs/jobs/bin/python benchmarks/neighbours.py
    .venvs/jobs/bin/python benchmarks/neighbours.py --rows 200000 --only drawn

Publishes embeddings of so many photos in a lake of its own, asks for the nearest before there is an index, builds it by
`fruits index`, asks again, and publishes 1 % more. Two sets: `drawn`, kinds of several objects with several shots each,
whose whitened embeddings are drawn; and `tiled`, the photos of `../shared/fruits`, of which `Training` is published
again and again with noise of the size of the distance to the nearest photo, and `Test` is asked. Recall is the share of
the truly nearest that are found. Prints figures with their goals and writes `build/bench/neighbours.json`; the exit
code is 1 when a goal is missed. Takes some minutes, and 4 GB of disk in the temporary folder; in the jobs environment.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.classify import SHARED, paths, photos, staged
from benchmarks.figure import Figure, figure
from benchmarks.parts import measured
from fruits.analysis.moments import moments_of
from fruits.analysis.pca import PCA, fit, pca_identity, transform
from fruits.lake.appends import append_files, file_target
from fruits.lake.branches import Writer, drop_run_branches, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.files import write_rows
from fruits.lake.pca_tables import PCAVersion, save_version
from fruits.lake.publication import Publication, current_base, publication_id, publish
from fruits.lake.schemas import DATA_TABLES, EMBEDDINGS
from fruits.serve.neighbours import Neighbour, Neighbours, open_neighbours
from fruits.settings import Settings

ROWS, ROWS_PER_FILE, ROWS_PER_BATCH = 1_000_000, 250_000, 10_000
QUERIES, COUNT = 500, 5
K, KINDS, OBJECTS = 160, 300, 20
SHARES = (0.5, 0.38, 0.12)
"""Of the variance: between kinds, between the objects of a kind, between the shots of an object."""
MOST_MS, LEAST_RECALL = 20, 0.99
MODEL = "drawn-0123456789ab"
NOW = datetime(2026, 11, 27, tzinfo=UTC)

Embeddings = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """Photos to publish, ``rows(n, seed)`` of shape ``(n, k)``, and queries ``(q, k)``: embeddings of one PCA."""

    pca: PCA
    rows: Callable[[int, int], Embeddings]
    queries: Embeddings


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both sets; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help="photos (%(default)s)")
    parser.add_argument("--fruits", type=Path, default=SHARED / "fruits", help="Training and Test (%(default)s)")
    parser.add_argument("--only", choices=("drawn", "tiled"), help="one of the two sets")
    args = parser.parse_args(argv)
    sources: dict[str, Callable[[], Source]] = {"drawn": drawn, "tiled": partial(tiled, args.fruits)}
    parts = {name: partial(figures, name, sources[name], args.rows) for name in sources if args.only in (None, name)}
    return int(not all(one["pass"] for one in measured(parts, "neighbours")))


def drawn() -> Source:
    """Kinds of objects of shots, in 160 dimensions whose variances fall as those of embeddings do."""
    kinds, objects, shots = np.sqrt(SHARES)
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(0, kinds, (KINDS, K)), OBJECTS, axis=0)
    centres += rng.normal(0, objects, centres.shape)
    shares = rng.dirichlet(np.full(len(centres), 2.0))
    variance = np.asarray(100 * 0.97 ** np.arange(K), dtype=np.float64)

    def rows(n: int, seed: int) -> Embeddings:
        rng = np.random.default_rng([1, seed])
        whitened = centres[rng.choice(len(centres), n, p=shares)] + rng.normal(0, shots, (n, K))
        return np.asarray(whitened * np.sqrt(variance), dtype=np.float32)

    pca = PCA(ROWS, np.zeros(K), np.eye(K), variance, variance / variance.sum(), float(variance.sum()))
    return Source(pca, rows, rows(QUERIES, -1 % 2**32))


def tiled(folder: Path) -> Source:
    """The photos of a folder: those of `Training` with noise, those of `Test` as queries."""
    with tempfile.TemporaryDirectory() as lake:
        settings = staged(lake)
        training, test = (photos(settings, paths(folder / split)).vectors for split in ("Training", "Test"))
    pca = fit(moments_of(training), 0.95, K)
    deviation = np.sqrt(pca.explained_variance)
    whitened = transform(pca, training)[0] / deviation
    noise = nearest_distances(whitened) / np.sqrt(whitened.shape[1])

    def rows(n: int, seed: int) -> Embeddings:
        rng = np.random.default_rng([2, seed])
        chosen = rng.integers(0, len(whitened), n)
        drawn = rng.normal(size=(n, whitened.shape[1])) * noise[chosen, np.newaxis]
        return np.asarray((whitened[chosen] + drawn) * deviation, dtype=np.float32)

    asked = np.random.default_rng(3).choice(len(test), min(QUERIES, len(test)), replace=False)
    return Source(pca, rows, transform(pca, test[np.sort(asked)])[0])


def nearest_distances(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distance of each row to its nearest other row."""
    from sklearn.neighbors import NearestNeighbors

    return np.asarray(NearestNeighbors(n_neighbors=2).fit(rows).kneighbors(rows)[0][:, 1])


def figures(name: str, source_of: Callable[[], Source], rows: int) -> Iterator[Figure]:
    """Everything about one set."""
    source = source_of()
    with tempfile.TemporaryDirectory(prefix="fruits-neighbours-") as folder:
        settings = Settings.load(
            lake=f"file://{folder}/lake", catalog_uri=f"sqlite:///{folder}/catalog.db", index_folder=f"{folder}/index"
        )
        lake = Lake.open(settings)
        what = f"{name}, {rows:,} photos"
        publication = publish_rows(lake, source, rows, 0)
        seconds, exact = timed(lambda: open_neighbours(lake, publication, source.pca))
        yield figure(f"{what}: opened without an index", seconds, "s")
        expected = exact.nearest(source.queries, COUNT)
        yield from times(f"{what}: one query without an index", exact, source.queries[:20])
        del exact
        yield from built(f"{what}: `fruits index`", settings)
        size = sum(file.stat().st_size for file in Path(folder, "index").rglob("*") if file.is_file())
        yield figure(f"{what}: bytes on disk, a photo", size / rows, "B")
        seconds, indexed = timed(lambda: open_neighbours(lake, publication, source.pca))
        yield figure(f"{what}: opened with {len(indexed.segments)} segments, all bytes checked", seconds, "s")
        before = anonymous_mb()
        found = indexed.nearest(source.queries, COUNT)
        yield from times(f"{what}: one query", indexed, source.queries, MOST_MS)
        yield figure(f"{what}: memory that {len(source.queries)} queries add", anonymous_mb() - before, "MB", most=50)
        yield figure(f"{what}: recall@1", recall(found, expected, 1), least=LEAST_RECALL)
        yield figure(f"{what}: recall@5", recall(found, expected, COUNT), least=LEAST_RECALL)
        more = rows // 100
        publication = publish_rows(lake, source, more, 1)
        seconds, joined = timed(lambda: open_neighbours(lake, publication, source.pca, before=indexed))
        yield figure(f"{what} and 1 % more: opened beside the index of before", seconds, "s")
        yield from times(f"{what} and 1 % more, not indexed: one query", joined, source.queries, MOST_MS)
        publish_rows(lake, source, 110_000, 2)
        yield from built(f"{what} and 110,000 more: `fruits index`", settings)


def publish_rows(lake: Lake, source: Source, rows: int, number: int) -> Publication:
    """Publish so many photos more, in files as jobs write them."""
    pca_id, base, writer = pca_identity(MODEL, source.pca), current_base(lake), Writer(f"run{number}", "pca_1_ab")
    for name in DATA_TABLES:
        start_branch(lake, name, writer.branch, base.publication.snapshots[name])
    if not number:
        version = PCAVersion(pca_id, MODEL, source.pca, "160", None, 1, "first fit", writer.run, NOW)
        save_version(lake, writer, version)
    target = file_target(lake, EMBEDDINGS, pca_id)
    files = (
        write_rows(lake.settings, target, batches(source, pca_id, number, start, min(rows, start + ROWS_PER_FILE)))
        for start in range(0, rows, ROWS_PER_FILE)
    )
    append_files(lake, EMBEDDINGS, pca_id, [file for file in files if file], writer)
    snapshots = {name: lake.state(name).refs[writer.branch] for name in DATA_TABLES}
    sequence = base.publication.sequence + 1
    row = Publication(sequence, snapshots, publication_id(sequence, snapshots), writer.run, NOW, MODEL, pca_id, {})
    published = publish(lake, base, writer, row)
    drop_run_branches(lake, writer.run)
    return published


def batches(source: Source, pca_id: str, number: int, first: int, end: int) -> Iterator[pa.RecordBatch]:
    """Rows of embeddings."""
    for start in range(first, end, ROWS_PER_BATCH):
        n = min(ROWS_PER_BATCH, end - start)
        embedding = source.rows(n, 1_000_000 * number + start // ROWS_PER_BATCH)
        k = embedding.shape[1]
        lists = pa.ListArray.from_arrays(np.arange(0, (n + 1) * k, k, dtype=np.int32), embedding.ravel())
        keys = [f"Training/Fruit/{number}-{row:09}.jpg" for row in range(start, start + n)]
        columns = {"key": keys, "etag": keys, "embedding": lists, "residual": np.zeros(n, np.float32)}
        constants = {"label": "Fruit", "split": "train", "model_id": MODEL, "pca_id": pca_id, "run_id": f"run{number}"}
        columns |= {name: pa.repeat(value, n) for name, value in constants.items()}
        yield pa.RecordBatch.from_pydict(
            {field.name: pa.array(columns[field.name]).cast(field.type) for field in EMBEDDINGS.schema},
            schema=EMBEDDINGS.schema,
        )


def built(what: str, settings: Settings) -> Iterator[Figure]:
    """Run `fruits index`; seconds and the most memory of its own that it held, pages of files left out."""
    names = ("lake", "index_folder")
    variables = {f"FRUITS_{name.upper()}": str(getattr(settings, name)) for name in names}
    variables["FRUITS_CATALOG_URI"] = settings.catalog_uri.get_secret_value()
    command = [sys.executable, "-m", "fruits", "index"]
    start, most = time.perf_counter(), 0.0
    with subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL) as process:  # noqa: S603
        while process.poll() is None:
            most = max(most, anonymous_mb(str(process.pid)))
            time.sleep(0.05)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
    yield figure(what, time.perf_counter() - start, "s")
    yield figure(f"{what}, memory", most, "MB")


def times(what: str, neighbours: Neighbours, queries: Embeddings, most: float | None = None) -> Iterator[Figure]:
    """Milliseconds of a query that comes alone: the median and the 95th percentile."""
    neighbours.nearest(queries[:1], COUNT)
    taken = [1_000 * timed(partial(neighbours.nearest, query[np.newaxis], COUNT))[0] for query in queries]
    yield figure(f"{what}, median", float(np.median(taken)), "ms", most=most)
    yield figure(f"{what}, 95th percentile", float(np.percentile(taken, 95)), "ms", most=most)


def recall(found: list[list[Neighbour]], expected: list[list[Neighbour]], count: int) -> float:
    """The share of the ``count`` truly nearest photos that are among the ``count`` found."""
    pairs = zip(found, expected, strict=True)
    return float(np.mean([len({*map(_key, a[:count])} & {*map(_key, b[:count])}) / count for a, b in pairs]))


def _key(photo: Neighbour) -> str:
    return photo.key


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Wall seconds and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def anonymous_mb(process: str = "self") -> float:
    """Memory of a process that is not pages of files; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


if __name__ == "__main__":
    sys.exit(main())
