"""A server that drops answers: what a dropped answer costs a worker, the same whether one of 20 is dropped or of 10.

A worker is the function that Spark calls for each task, here in this process, behind a proxy that cuts off one of so
many answers, with its connection, and behind the same proxy that drops none. No photo may be lost. The client waits up
to a tenth of a second before it asks again, and other GETs go on meanwhile.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

from benchmarks.figure import Figure, median
from benchmarks.jobs import put_all, temporary_lake
from benchmarks.speed.gets import rate
from benchmarks.speed.photos import objects, photos
from benchmarks.speed.scale import Scale
from benchmarks.speed.slow_proxy import slow_proxy
from fruits.backbones.stage import load_backbone, stage
from fruits.photos.entry import Action, Entry
from fruits.photos.listing import list_objects

PHOTOS = 600
DROPPED = (20, 10)
"""Of so many answers one is dropped."""

MOST_MILLISECONDS = 100


def figures(scale: Scale) -> Iterator[Figure]:
    """The figures: photos a second, and the seconds of each dropped answer beyond those of a server that drops none."""
    with temporary_lake() as settings, ExitStack() as proxies:
        put_all(settings, objects(photos(), PHOTOS))
        backbone = load_backbone(settings, stage(settings).model_id)
        entries = [
            Entry(one.key, one.etag, one.size, one.last_modified, Action.CREATE, "x", "train")
            for one in list_objects(settings, "")
        ]
        port = urlsplit(str(settings.s3_endpoint)).port or 0
        places = [
            settings.model_copy(update={"s3_endpoint": proxies.enter_context(slow_proxy(port, dropped=dropped))})
            for dropped in (0, *DROPPED)
        ]
        turns = [[rate(place, entries, backbone) for place in places] for _ in range(scale.runs + 1)][1:]
    what = f"a worker over {PHOTOS:,} photos"
    yield median(f"{what}, no answer dropped", [turn[0] for turn in turns], "img/s")
    for place, dropped in enumerate(DROPPED, start=1):
        yield median(f"{what}, 1 answer of {dropped} dropped", [turn[place] for turn in turns], "img/s")
        lost = [1e3 * (PHOTOS / turn[place] - PHOTOS / turn[0]) / (PHOTOS / dropped) for turn in turns]
        yield median(f"{what}, 1 of {dropped}: a dropped answer costs", lost, "ms", most=MOST_MILLISECONDS)
