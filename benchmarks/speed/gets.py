"""GETs: what 50 ms of delay cost a worker, and the client's core seconds of 1,000 GETs against boto3 in threads.

A worker is the function that Spark calls for each task, here in this process, against a proxy that holds each request
back, and against the same proxy without delay.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from benchmarks.figure import Figure, median
from benchmarks.jobs import put_all, temporary_lake
from benchmarks.speed.photos import objects, photos
from benchmarks.speed.scale import Scale
from benchmarks.speed.slow_proxy import slow_proxy
from fruits.backbones.runtime import Backbone
from fruits.backbones.stage import load_backbone, stage
from fruits.photos.entry import Action, Entry
from fruits.photos.featurize import featurize_entries
from fruits.photos.fetch import PhotoServer
from fruits.photos.listing import list_objects
from fruits.settings import Settings

DELAY = 0.05
LEAST, MOST = 0.90, 0.35
GETS = 1_000


def figures(scale: Scale) -> Iterator[Figure]:
    """The figures of GETs."""
    with temporary_lake() as settings:
        put_all(settings, objects(photos(), GETS))
        backbone = load_backbone(settings, stage(settings).model_id)
        entries = [
            Entry(one.key, one.etag, one.size, one.last_modified, Action.CREATE, "x", "train")
            for one in list_objects(settings, "")
        ]
        yield from delayed(settings, entries, backbone, scale.runs)
        yield from clients(settings, [entry.key for entry in entries], scale.runs)


def delayed(settings: Settings, entries: Sequence[Entry], backbone: Backbone, runs: int) -> Iterator[Figure]:
    """What the delay costs."""
    port = urlsplit(str(settings.s3_endpoint)).port or 0
    with slow_proxy(port, DELAY) as slow, slow_proxy(port, 0) as fast:
        far, near = (settings.model_copy(update={"s3_endpoint": address}) for address in (slow, fast))
        rates = [[rate(place, entries, backbone) for place in (near, far)] for _ in range(runs + 1)][1:]
    what = f"a worker over {len(entries):,} photos"
    yield median(f"{what}, GETs not delayed", [at_once for at_once, _ in rates], "img/s")
    yield median(f"{what}, GETs delayed by {1e3 * DELAY:g} ms", [late for _, late in rates], "img/s")
    ratios = [late / at_once for at_once, late in rates]
    yield median(f"{what}, delayed of not delayed", ratios, "x", least=LEAST)


def rate(settings: Settings, entries: Sequence[Entry], backbone: Backbone) -> float:
    """Photos a second, by the clock."""
    start = time.perf_counter()
    done = sum(1 for one in featurize_entries(entries, PhotoServer(settings), backbone, settings) if one.feature)
    if done != len(entries):
        raise RuntimeError(f"{done:,} of {len(entries):,} photos were featurized")
    return done / (time.perf_counter() - start)


def clients(settings: Settings, keys: Sequence[str], runs: int) -> Iterator[Figure]:
    """Core seconds of our client, and of boto3 in as many threads."""
    server = PhotoServer(settings)
    client = boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint,
        region_name=settings.s3_region,
        config=Config(max_pool_connections=settings.gets_in_flight, s3={"addressing_style": "path"}),
    )

    def by_boto3(key: str) -> bytes:
        data: bytes = client.get_object(Bucket=settings.bucket, Key=key)["Body"].read()
        return data

    def turn() -> tuple[float, float]:
        ours = core_seconds(lambda key: server.fetch(key).data, keys, settings.gets_in_flight)
        return ours, core_seconds(by_boto3, keys, settings.gets_in_flight)

    seconds = [turn() for _ in range(runs + 1)][1:]
    what = f"{len(keys):,} GETs, {settings.gets_in_flight} threads"
    yield median(f"{what}: our client, of a core", [ours for ours, _ in seconds], "s")
    yield median(f"{what}: boto3, of a core", [theirs for _, theirs in seconds], "s")
    yield median(f"{what}: our client of boto3", [ours / theirs for ours, theirs in seconds], "x", most=MOST)


def core_seconds(get: Callable[[str], object], keys: Sequence[str], threads: int) -> float:
    """Core seconds of this process for all GETs; the connections are there already."""
    with ThreadPoolExecutor(threads) as pool:
        start = time.process_time()
        if not all(pool.map(get, keys)):
            raise RuntimeError("a GET gave nothing")
        return time.process_time() - start
