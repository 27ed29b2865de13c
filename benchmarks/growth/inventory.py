"""What a sweep costs that reads a report of S3 Inventory instead of a listing.

Rows and report are synthetic, and the report's Parquet files are on this machine's disk: on AWS they come over the
network. One key in a thousand has changed. To look such keys up takes one HEAD each, which is left out. `make
bench-growth ARGS=inventory` prints the figures.
"""

import hashlib
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from math import sqrt
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.figure import Figure, figure
from benchmarks.growth.plan import MICROSECONDS, MOST_MEGABYTES, PAGE, etag_of, peak_megabytes, plan, rows

SIZES = (1_000_000, 4_000_000)
LARGEST = 100_000_000
MOST_MINUTES = 60.0
FOLDER = "reports/fruits/daily"
ROWS_PER_FILE = 500_000
ROWS_PER_GROUP = 250_000
SCHEMA = (
    "message s3.inventory { required binary key (UTF8); optional int64 size; "
    "optional int64 last_modified_date (TIMESTAMP(MILLIS,true)); optional binary e_tag (UTF8);}"
)


def figures() -> list[Figure]:
    """The figures of sweeps by a report."""
    found, seconds_by_size = [], {}
    for size in SIZES:
        reading, seconds, megabytes, report = measured(size)
        what = f"{size:,} keys by an inventory"
        found.append(figure(f"{what}: reading the report", reading, "s"))
        found.append(figure(f"{what}: size of the report", report, "MB"))
        found.append(figure(f"{what}: plan", seconds, "s"))
        found.append(figure(f"{what}: peak memory of the plan", megabytes, "MB", most=MOST_MEGABYTES))
        seconds_by_size[size] = seconds
    small, large = (seconds_by_size[size] / size for size in SIZES)
    found.append(figure("time of a key, larger against smaller report", large / small, "x"))
    # The join takes passes over the rows whose number grows with the square root of the keys.
    roots = [sqrt(size) for size in (*SIZES, LARGEST)]
    slope = max(0.0, (large - small) / (roots[1] - roots[0]))
    minutes = LARGEST * (large + slope * (roots[2] - roots[1])) / 60
    found.append(figure(f"{LARGEST:,} keys by an inventory, extrapolated", minutes, "min", most=MOST_MINUTES))
    return found


def measured(size: int) -> list[float]:
    """Seconds to read a report and to plan by it, megabytes of memory and of the report."""
    with tempfile.TemporaryDirectory() as folder:
        megabytes = write_report(Path(folder), size)
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.growth.inventory", folder, str(size)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 -- our own
        return [*json.loads(done.stdout.splitlines()[-1]), megabytes]


def write_report(root: Path, size: int) -> float:
    """Write a report on so many keys as S3 does; its megabytes."""
    import pyarrow.parquet as pq

    folder = root / FOLDER
    (folder / "data").mkdir(parents=True)
    batches, written = rows(size, changed=True), []
    for number in range(-(-size // ROWS_PER_FILE)):
        table = pa.Table.from_batches(islice(batches, ROWS_PER_FILE // PAGE))
        kinds = {"last_modified_date": pa.timestamp("ms", tz="UTC")}
        names = {"key": "key", "size": "size", "last_modified_date": "last_modified", "e_tag": "etag"}
        columns = {name: table[column].cast(kinds.get(name, table[column].type)) for name, column in names.items()}
        written.append({"key": f"{FOLDER}/data/{number}.parquet"})
        pq.write_table(pa.table(columns), root / written[-1]["key"], row_group_size=ROWS_PER_GROUP)
    date = datetime.fromtimestamp(MICROSECONDS / 1e6 + 86_400, UTC)
    manifest = {
        "sourceBucket": "fruits",
        "creationTimestamp": str(int(date.timestamp() * 1_000)),
        "fileFormat": "Parquet",
        "fileSchema": SCHEMA,
        "files": written,
    }
    text = json.dumps(manifest).encode()
    place = folder / f"{date:%Y-%m-%dT%H-%MZ}"
    place.mkdir()
    (place / "manifest.json").write_bytes(text)
    (place / "manifest.checksum").write_text(hashlib.md5(text, usedforsecurity=False).hexdigest())
    return sum(file.stat().st_size for file in (folder / "data").iterdir()) / 1e6


def measure(root: str, size: int) -> list[float]:
    """Read the report, then plan by it; seconds of both, and the peak of memory."""
    from obstore.store import LocalStore

    from fruits.photos.inventory import newest_report, reported_batches
    from fruits.photos.listing import ListedObject, batch_of
    from fruits.run.sources import catch_up

    store = LocalStore(root)
    report = newest_report(store, FOLDER, "fruits")

    def look_up(keys: Sequence[str]) -> Iterator[pa.RecordBatch]:
        numbers = [int(key[-14:-4]) for key in keys]
        moment = datetime.fromtimestamp(MICROSECONDS / 1e6, UTC)
        yield batch_of(
            [ListedObject(key, etag_of(one + 1), 6_000, moment) for key, one in zip(keys, numbers, strict=True)]
        )

    def caught_up(pairs: Any, ignored: Any) -> None:
        catch_up(pairs, ignored, look_up, "", report.date)

    started = time.perf_counter()
    plan(size, rows(size), reported_batches(store, report, ""), caught_up)
    planning, megabytes = time.perf_counter() - started, peak_megabytes()
    started = time.perf_counter()
    for _ in reported_batches(store, report, ""):
        pass
    reading = time.perf_counter() - started
    started = time.perf_counter()
    for _ in rows(size):
        pass
    return [reading, planning - (time.perf_counter() - started), megabytes]


if __name__ == "__main__":
    logging.disable()
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
