"""``fruits verify``: does everything that is published agree with the bucket and with itself?"""

import json
from collections.abc import Iterable
from typing import Any

from rich.console import RenderableType

from fruits.cli.airflow import NoAirflowError, trigger
from fruits.cli.output import Document, fields, table
from fruits.cli.place import Place
from fruits.lake.reader import current_publication, open_read_only
from fruits.lake.source import check_source
from fruits.steps.verify import repair_of, verify

_MOST_SHOWN = 5


def examine(place: Place, *, repair: bool) -> dict[str, Any]:
    """The findings of all checks, and the run that mends the differences; with ``repair`` that run is started.

    Raises:
        FruitsError: when nothing is published yet, or the bucket cannot be listed.
    """
    lake = open_read_only(place.settings)
    check_source(lake)
    checks = verify(place.settings, lake)
    params = repair_of(checks)
    started = message = None
    if repair and params is not None:
        try:
            started = trigger(place, params)
        except NoAirflowError as error:
            message = str(error)
    return {
        "ok": not any(check.differences for check in checks),
        "publication": current_publication(lake).publication_id,
        "checks": [check.to_document() for check in checks],
        "repair": params,
        "run_id": started,
        "not_started": message,
    }


def render(document: Document) -> Iterable[RenderableType]:
    """For a terminal."""
    yield f"{document['publication']}:"
    yield table(("", "check", "found"), ((one["state"], one["name"], one["found"]) for one in document["checks"]))
    for check in document["checks"]:
        if check["examples"]:
            yield f"\n{check['name']}:"
            yield from (f"  {name}" for name in check["examples"][:_MOST_SHOWN])
            if check["differences"] > _MOST_SHOWN:
                yield f"  {check['differences'] - _MOST_SHOWN:,} more; --json names up to 1,000"
    if document["ok"]:
        return
    yield ""
    if document["run_id"]:
        yield f"Run {document['run_id']} mends them; `fruits status` shows its result."
    elif document["repair"] is None:
        yield "No run mends them: see docs/operations.md, Verification."
    else:
        yield "A run of fruit_features with these params mends them (`fruits verify --repair` starts the run):"
        yield fields([("params", json.dumps(document["repair"], ensure_ascii=False))])
    if document["not_started"]:
        yield document["not_started"]
