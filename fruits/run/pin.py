"""A pin: a person's decision that readers stay on a publication. Until a person removes the pin, runs end without work.

A pin is the document ``pins/<namespace>.json`` in the lake. Maintenance continues, because it changes files and not
rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.publication import Base, Publication, choose, publications, same_content
from fruits.run.request import Frozen
from fruits.settings import Settings
from fruits.stores import lake_store, read_json, remove_files, write_json


class Pin(Frozen):
    """The publication that readers stay on, and the person, time and reason of the decision."""

    publication_id: str
    sequence: int
    by: str
    at: datetime
    why: str

    def __str__(self) -> str:
        """For logs and people."""
        return f"{self.by} pinned readers to {self.publication_id} on {self.at:%Y-%m-%d %H:%M} UTC: {self.why}"


def current_pin(settings: Settings) -> Pin | None:
    """The lake's pin; None when readers follow each run.

    Raises:
        FruitsError: when this release does not know the document's form.
    """
    path = _path(settings)
    try:
        return Pin.model_validate(read_json(lake_store(settings), path))
    except FileNotFoundError:
        return None
    except ValueError as error:  # no JSON, or other fields
        raise FruitsError(
            f"pin {settings.lake}/{path}: not a pin that Fruits knows; `fruits unpin` removes it"
        ) from error


def set_pin(settings: Settings, publication: Publication, by: str, why: str, now: datetime | None = None) -> Pin:
    """Pin readers to a publication, in place of any earlier pin.

    Raises:
        FruitsError: when no reason is given.
    """
    if not why.strip():
        raise FruitsError("pin: expected a reason, for whoever finds the pin; add --why")
    pin = Pin(
        publication_id=str(publication.publication_id),
        sequence=publication.sequence,
        by=by,
        at=now or datetime.now(UTC),
        why=" ".join(why.split()),
    )
    _write(settings, pin)
    return pin


@contextmanager
def pinned(settings: Settings, publication: Publication, by: str, why: str) -> Iterator[Pin]:
    """Pin readers to a publication before they get there, so that no run publishes meanwhile; undone by an error."""
    before = current_pin(settings)
    pin = set_pin(settings, publication, by, why)
    try:
        yield pin
    except BaseException:
        if before is None:
            remove_pin(settings)
        else:
            _write(settings, before)
        raise


def remove_pin(settings: Settings) -> bool:
    """Let runs publish again; returns whether there was a pin."""
    store, path = lake_store(settings), _path(settings)
    try:
        read_json(store, path)
    except FileNotFoundError:
        return False
    except ValueError:
        pass  # an unreadable pin, which is in the way
    remove_files(store, path)
    return True


def to_pin(lake: Lake, base: Base, wanted: str | None) -> Publication:
    """The publication to pin: the one that readers see. ``wanted`` must name that one, or one with the same content.

    Raises:
        FruitsError: when nothing is published, or readers see another publication.
    """
    published = publications(lake, base.publications_snapshot)
    if not published:
        raise FruitsError("pin: nothing is published yet, so there is nothing to stay on")
    chosen = published[-1] if wanted is None else choose(lake, published, wanted)
    if not same_content(chosen, published[-1]):
        raise FruitsError(
            f"pin: readers see {published[-1].publication_id}, not {chosen.publication_id}; "
            f"`fruits rollback {chosen.sequence} --pin --why ...` goes back and stays there"
        )
    return chosen


def check_unpinned(settings: Settings) -> None:
    """See that runs may publish.

    Raises:
        FruitsError: when readers are pinned; says who did that and why.
    """
    pin = current_pin(settings)
    if pin is not None:
        raise FruitsError(f"{pin}; nothing was published. After `fruits unpin`, clear the run from `wait_for_lease`")


def _write(settings: Settings, pin: Pin) -> None:
    write_json(lake_store(settings), _path(settings), pin.model_dump(mode="json"))


def _path(settings: Settings) -> str:
    return f"pins/{settings.namespace}.json"
