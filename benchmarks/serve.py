"""How fast does the service answer, what does it keep, and does it drop photos while publications change?

Publishes the photos of a folder (`Training/<label>/*.jpg`) by two runs of the chain, half of them first, and asks a
process of `fruits serve` about those in `Test/`. Prints: milliseconds for a photo, by one client of a warm service
that has one core; the 95th percentile under eight clients and two cores; how much the process grows over many photos;
and how many photos got no answer while rollbacks publish again and again. Ends with 1 when a goal is missed. Run it in
the jobs environment, with the airflow environment beside it; publishing takes minutes.
"""

import http.client
import io
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.figure import Figure, figure
from benchmarks.identify import data_folder, halves, publish
from benchmarks.parts import Measure, chosen, measured, parser_of
from fruits.lake.catalog import Lake
from fruits.lake.publication import publications, roll_back
from fruits.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
WARM_MS, BUSY_MS = 60, 400
CLIENTS = 8
GROWTH_MB = 20
SWAPS = 10
TWELVE_MP = (4032, 3024)


def main(argv: Sequence[str] | None = None) -> int:
    """Publish, ask, print."""
    parser = parser_of(__doc__, PARTS)
    default = ROOT.parent / "shared" / "fruits"
    parser.add_argument("--images", type=Path, default=default, help="folder of photos (default %(default)s)")
    parser.add_argument("--photos", type=int, default=10_000, help="photos over which growth is measured (%(default)s)")
    parser.add_argument("--data", type=Path, help="keep the lake here; a second time nothing is published")
    args = parser.parse_args(argv)
    published, asked = halves(args.images)
    photos = [path.read_bytes() for path in asked]
    with data_folder(args.data) as data:
        settings = Settings.load(lake=f"file://{data}/lake", catalog_uri=f"sqlite:///{data}/catalog.db")
        parts: dict[str, Measure] = {name: partial(part, settings, photos) for name, part in PARTS.items()}
        parts["growth"] = partial(growth, settings, photos, args.photos)
        named = chosen(parser, args.parts, parts)
        if not (data / "catalog.db").exists():
            publish(dict(list(published.items())[::2]), data)
            publish(published, data)
        figures = measured(named, "serve")
    return int(not all(found["pass"] for found in figures))


@dataclass(frozen=True)
class Service:
    """A process of `fruits serve`."""

    host: str
    port: int
    pid: int

    def get(self, path: str) -> dict[str, object]:
        """A document."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        connection.request("GET", path)
        return dict(json.loads(connection.getresponse().read()))

    def client(self) -> Callable[[bytes], tuple[int, float]]:
        """A client with a connection of its own: gives status (0 without an answer) and seconds for a photo."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)

        def ask(photo: bytes) -> tuple[int, float]:
            start = time.perf_counter()
            try:
                connection.request("POST", "/identify", photo, {"Content-Type": "image/jpeg"})
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                return 0, time.perf_counter() - start
            return response.status, time.perf_counter() - start

        return ask

    @property
    def resident_mb(self) -> float:
        """Memory of the process, in MB."""
        (kilobytes,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(kilobytes) / 1e3


@contextmanager
def serving(settings: Settings, cores: int, *, refresh: float = 15) -> Iterator[Service]:
    """A service of a lake on some cores, which is ready."""
    chosen = set(itertools.islice(sorted(os.sched_getaffinity(0)), cores))
    variables = {"FRUITS_LAKE": settings.lake, "FRUITS_CATALOG_URI": settings.catalog_uri.get_secret_value()}
    command = [sys.executable, "-m", "fruits", "serve", "--port", "0", "--refresh", str(refresh)]
    process = subprocess.Popen(  # noqa: S603 -- ours
        ["taskset", "--cpu-list", ",".join(map(str, chosen)), *command],  # noqa: S607
        env={**os.environ, **variables},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines: list[str] = []
        for line in process.stderr or ():
            lines.append(line)
            if found := re.search(r"http://([0-9.]+):(\d+) answers", line):
                break
        else:
            sys.exit("".join(lines))
        threading.Thread(target=process.stderr.read, daemon=True).start()  # type: ignore[union-attr]
        service = Service(found[1], int(found[2]), process.pid)
        while not service.get("/ready")["ready"]:
            time.sleep(0.2)
        yield service
    finally:
        process.terminate()
        process.wait()


def latency(settings: Settings, photos: Sequence[bytes]) -> Iterator[Figure]:
    """One client, one core."""
    with serving(settings, 1) as service:
        ask = service.client()
        for name, asked, goal in (
            ("a photo", photos[:300], WARM_MS),
            ("a photo of 12 MP", [enlarged(photos[0])] * 20, None),
        ):
            for photo in asked[:10]:
                ask(photo)
            seconds = [ask(photo)[1] for photo in asked]
            yield figure(f"{name}, one client on one core, median", 1e3 * statistics.median(seconds), "ms", most=goal)
            yield figure(f"{name}, one client on one core, 95th percentile", 1e3 * np.quantile(seconds, 0.95), "ms")


def enlarged(photo: bytes) -> bytes:
    """A photo as a phone's camera makes it."""
    file = io.BytesIO()
    Image.open(io.BytesIO(photo)).convert("RGB").resize(TWELVE_MP).save(file, "JPEG", quality=85)
    return file.getvalue()


def busy(settings: Settings, photos: Sequence[bytes]) -> Iterator[Figure]:
    """Eight clients, two cores."""
    with serving(settings, 2) as service:
        answers = together(service, [*photos, *photos])
        seconds = [second for _, second in answers]
        yield figure(
            f"{CLIENTS} clients on two cores, 95th percentile", 1e3 * np.quantile(seconds, 0.95), "ms", most=BUSY_MS
        )
        yield figure(f"{CLIENTS} clients on two cores, without an answer", failed(answers), most=0)
        yield figure(f"{CLIENTS} clients on two cores, photos a second", CLIENTS / statistics.mean(seconds))


def together(service: Service, photos: Sequence[bytes]) -> list[tuple[int, float]]:
    """The answers that clients get who share the photos."""

    def ask_all(start: int) -> list[tuple[int, float]]:
        ask = service.client()
        return [ask(photo) for photo in photos[start::CLIENTS]]

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [answer for answers in pool.map(ask_all, range(CLIENTS)) for answer in answers]


def failed(answers: Sequence[tuple[int, float]]) -> int:
    """How many photos got another status than 200, or none."""
    return sum(status != http.HTTPStatus.OK for status, _ in answers)


def growth(settings: Settings, photos: Sequence[bytes], count: int) -> Iterator[Figure]:
    """Memory after many photos."""
    with serving(settings, 2) as service:
        together(service, photos[:500])
        before = service.resident_mb
        answers = together(service, list(itertools.islice(itertools.cycle(photos), count)))
        yield figure("memory of the process", before, "MB")
        yield figure(f"growth over {count:,} photos", service.resident_mb - before, "MB", most=GROWTH_MB)
        yield figure(f"of {count:,} photos, without an answer", failed(answers), most=0)


def swaps(settings: Settings, photos: Sequence[bytes]) -> Iterator[Figure]:
    """Publications under load: rollbacks, back and forth."""
    lake = Lake(settings)
    with serving(settings, 2, refresh=0.5) as service:
        ended = threading.Event()

        def ask_on(start: int) -> list[tuple[int, float]]:
            ask, answers = service.client(), []
            for photo in itertools.cycle(photos[start:]):
                answers.append(ask(photo))
                if ended.is_set():
                    return answers
            return answers

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask_on, start) for start in range(4)]
            try:
                resident = []
                for _ in range(SWAPS):
                    later = roll_back(lake, str(publications(lake)[-2].publication_id)).publication_id
                    while service.get("/ready")["publication_id"] != later:
                        time.sleep(0.1)
                    resident.append(service.resident_mb)
            finally:
                ended.set()
            answers = [answer for one in asking for answer in one.result()]
        yield figure(f"{SWAPS} new publications under four clients: photos without an answer", failed(answers), most=0)
        slowest = 1e3 * max(second for _, second in answers)
        yield figure(f"{SWAPS} new publications under four clients: the slowest of {len(answers):,}", slowest, "ms")
        half = SWAPS // 2
        yield figure(
            f"growth from the {half}th to the {SWAPS}th publication",
            resident[-1] - resident[half - 1],
            "MB",
            most=GROWTH_MB,
        )


PARTS: Mapping[str, Callable[..., Iterator[Figure]]] = {
    "latency": latency,
    "busy": busy,
    "growth": growth,
    "swaps": swaps,
}


if __name__ == "__main__":
    sys.exit(main())
