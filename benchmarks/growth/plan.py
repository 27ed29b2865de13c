"""What planning costs at 100,000, a million and ten million keys: memory, and time against the bare listing.

Rows and listing are synthetic, so nothing is uploaded. Each figure is of a process of its own, because memory is a
process's peak. The listings ask a server that answers each page after 50 ms, in a process of its own on this machine.
`make bench-growth ARGS=plan` prints the figures.
"""

import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa

from benchmarks.figure import Figure, figure

SIZES = (100_000, 1_000_000, 10_000_000)
MOST_MEGABYTES = 300.0
MOST_SLOWER = 1.5
LEAST_FASTER = 8.0
LISTED = 1_000_000
PAGE = 1_000
PAGE_SECONDS = 0.05
LABELS = 131
RANGES = 16
MICROSECONDS = 1_795_735_862_000_000


def figures() -> list[Figure]:
    """The figures of planning and listing."""
    found = []
    for size in SIZES:
        for kind in ("unchanged", "new"):
            seconds, megabytes, disk = measured("plan", size, kind)
            what = f"plan of a sweep over {size:,} keys, {kind}"
            found.append(figure(f"{what}: peak memory", megabytes, "MB", most=MOST_MEGABYTES))
            found.append(figure(f"{what}: without the listing", seconds, "s"))
            found.append(figure(f"{what}: manifest and temporary files", disk, "MB"))
    one, ranges = measured("list", LISTED, "1")[0], measured("list", LISTED, str(RANGES))[0]
    planned = measured("listed_plan", LISTED, str(RANGES))[0]
    what = f"{LISTED:,} keys, {1e3 * PAGE_SECONDS:g} ms a page"
    found.append(figure(f"listing of {what}: one stream", one, "s"))
    found.append(figure(f"listing of {what}: {RANGES} ranges", ranges, "s"))
    found.append(figure(f"{RANGES} ranges against one stream", one / ranges, "x", least=LEAST_FASTER))
    found.append(figure(f"plan of {what}, {RANGES} ranges", planned, "s"))
    found.append(figure("plan against the bare listing, one stream", planned / one, "x", most=MOST_SLOWER))
    found.append(figure("plan against the bare listing, both in ranges", planned / ranges, "x", most=MOST_SLOWER))
    return found


def measured(work: str, size: int, kind: str) -> tuple[float, float, float]:
    """Seconds, megabytes of memory and of files of some work, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.growth.plan", work, str(size), kind]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 -- our own
    seconds, megabytes, disk = json.loads(done.stdout.splitlines()[-1])
    return seconds, megabytes, disk


def key_of(number: int, size: int) -> str:
    """The keys are numbered in their order."""
    return f"Training/label {number * LABELS // size:03d}/photo_{number:010d}.jpg"


def etag_of(number: int) -> str:
    """Different for each key, as hashes are."""
    return f"{number * 2654435761 % 2**64:016x}{number * 40503 % 2**64:016x}"


def rows(size: int, *, changed: bool = False) -> Iterator[pa.RecordBatch]:
    """Photos as the tables or a listing have them; of 1,000 ``changed`` ones, one has another ETag."""
    for start in range(0, size, PAGE):
        numbers = range(start, min(size, start + PAGE))
        keys = [key_of(number, size) for number in numbers]
        yield pa.RecordBatch.from_pydict(
            {
                "key": keys,
                "etag": [etag_of(number + (changed and number % 1_000 == 0)) for number in numbers],
                "size": [6_000] * len(numbers),
                "last_modified": pa.array([MICROSECONDS] * len(numbers), pa.timestamp("us", tz="UTC")),
                "label": [key.split("/")[1] for key in keys],
                "split": ["train"] * len(numbers),
            }
        )


def plan(
    size: int,
    known: Iterable[pa.RecordBatch],
    listed: Iterable[pa.RecordBatch],
    catch_up: Callable[[Any, Any], None] | None = None,
) -> tuple[int, float]:
    """Plan as the task does, and write the manifest; how many entries, and megabytes of files.

    ``catch_up`` corrects the objects of a source that is older than the rows.
    """
    import pyiceberg.catalog.sql  # noqa: F401 -- the task has it in memory as well

    from fruits.photos.keys import KeyRules
    from fruits.run.joining import joined
    from fruits.run.manifest import write_manifest
    from fruits.run.reconciliation import Ignored, make_plan
    from fruits.run.request import RunRequest
    from fruits.steps import plan as _  # noqa: F401 -- and all that it imports
    from fruits.stores import lake_store

    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        settings = settings_of(f"file://{folder}/lake")
        rules, request = KeyRules.of(settings), RunRequest(prefix="")
        with joined() as pairs:
            pairs.add("known", known)
            ignored = Ignored.by(rules, request)
            pairs.add("listed", ignored.others(listed))
            if catch_up:
                catch_up(pairs, ignored)
            if pairs.rows["listed"] != size:
                raise AssertionError(f"{pairs.rows['listed']:,} of {size:,} objects were listed")
            planned = make_plan(pairs, ignored, rules, request, same_rules=True)
            write_manifest(lake_store(settings), planned.batches())
            files = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
            return planned.work, files / 1e6


def settings_of(lake: str, **more: Any) -> Any:
    """Settings of a lake."""
    from fruits.settings import Settings

    return Settings.load(lake=lake, catalog_uri="sqlite:////unused.db", bucket="fruits", **more)


def list_all(size: int, ranges: int) -> Iterator[pa.RecordBatch]:
    """The objects of the slow server, in ranges of the same size."""
    from fruits.photos.listing import listed_batches

    bounds = [key_of(size * place // ranges, size) for place in range(1, ranges)]
    with slow_server(size) as address:
        settings = settings_of("file:///unused", s3_endpoint=address, s3_region="us-east-1")
        yield from listed_batches(settings, "", bounds)


class slow_server:  # noqa: N801 -- a context manager
    """A server that lists so many synthetic keys, a page after 50 ms; its address."""

    def __init__(self, size: int) -> None:
        self.command = [sys.executable, "-m", "benchmarks.growth.plan", "serve", str(size), ""]

    def __enter__(self) -> str:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)  # noqa: S603 -- our own
        assert self.process.stdout is not None  # noqa: S101 -- a pipe was asked for
        os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        return f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


async def serve(size: int) -> None:
    """Answer requests for pages of a listing."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readline():
            while (await reader.readline()).strip():
                pass
            asked = parse_qs(urlsplit(head.split()[1].decode()).query)
            after = asked.get("start-after", [""])[0]
            first = int(asked["continuation-token"][0]) if "continuation-token" in asked else 0
            page = page_of(size, int(after[-14:-4]) + 1 if after else first)
            await asyncio.sleep(PAGE_SECONDS)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page) + page)
            await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def page_of(size: int, start: int) -> bytes:
    """A page as S3 writes it."""
    end = min(size, start + PAGE)
    items = "".join(
        f"<Contents><Key>{key_of(number, size).replace(' ', '+')}</Key><LastModified>2026-11-25T00:00:00.000Z"
        f"</LastModified><ETag>&quot;{etag_of(number)}&quot;</ETag><Size>6000</Size><StorageClass>STANDARD"
        "</StorageClass></Contents>"
        for number in range(start, end)
    )
    more = f"<IsTruncated>{str(end < size).lower()}</IsTruncated><NextContinuationToken>{end}</NextContinuationToken>"
    return (
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><EncodingType>url</EncodingType>'
        f"{more}{items}</ListBucketResult>"
    ).encode()


def peak_megabytes() -> float:
    """The most memory that this process has had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def measure(work: str, size: int, kind: str) -> tuple[float, float, float]:
    """Do the work in this process; seconds, megabytes of memory, and of files."""
    disk, making = 0.0, 0.0
    known = rows(size) if work == "listed_plan" or kind == "unchanged" else iter(())
    if work == "plan":  # less what it takes to make the rows
        started = time.perf_counter()
        for _ in rows(size):
            pass
        making = (time.perf_counter() - started) * (2 if kind == "unchanged" else 1)
    started = time.perf_counter()
    if work == "list":
        listed = sum(batch.num_rows for batch in list_all(size, int(kind)))
        if listed != size:
            raise AssertionError(f"{listed:,} of {size:,} objects were listed")
    elif work == "listed_plan":
        _, disk = plan(size, known, timed(list_all(size, int(kind))))
    else:
        _, disk = plan(size, known, rows(size, changed=True))
    return time.perf_counter() - started - making, peak_megabytes(), disk


def timed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches."""
    yield from batches


if __name__ == "__main__":
    logging.disable()
    if sys.argv[1] == "serve":
        asyncio.run(serve(int(sys.argv[2])))
    else:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
