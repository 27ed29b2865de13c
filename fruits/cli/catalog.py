"""``fruits catalog``: print the properties that open the tables; rebuild the catalog's database from the lake."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import RenderableType

from fruits.cli.output import Document, fields, table
from fruits.errors import FruitsError
from fruits.lake.rebuild import Rebuild, rebuild
from fruits.run.lease import acquire_lease, release_lease
from fruits.serve.summary import describe_catalog
from fruits.settings import Settings


def properties(settings: Settings) -> dict[str, Any]:
    """The properties that open the tables, without user and password."""
    return describe_catalog(settings)


def render_properties(catalog: Document) -> Iterable[RenderableType]:
    """The properties for a terminal."""
    name, namespace = catalog["name"], catalog["namespace"]
    yield f"PyIceberg: load_catalog({name!r}, **properties); the tables are {namespace}.<table>"
    yield fields(catalog["properties"].items())
    yield f"\nSpark: the session's configuration; the tables are {name}.{namespace}.<table>"
    yield fields(catalog["spark"].items())
    yield "\nUser and password of the database, and keys of S3, are left out: docs/data.md says where they go."


@contextmanager
def no_run_works(settings: Settings) -> Iterator[None]:
    """Hold the lease, so that no run works on the lake meanwhile.

    Raises:
        FruitsError: if a run holds the lease; names the run.
    """
    holder = f"catalog_rebuild_{datetime.now(UTC):%Y%m%dt%H%M%S%f}"
    other = acquire_lease(settings, holder)
    if other is not None:
        raise FruitsError(
            f"catalog rebuild: run {other.run} holds the lease of lake {settings.lake}, renewed at "
            f"{other.renewed_at:%H:%M:%S} UTC; stop the run, and start the command again five minutes later"
        )
    try:
        yield
    finally:
        release_lease(settings, holder)


def preview(planned: Rebuild) -> str:
    """The changes for a person to confirm; an empty text if there is no change."""
    if not planned.changes:
        return ""
    lines = [f"table {table.name}: {_file(table.registered)} -> {_file(table.newest)}" for table in planned.changes]
    return "\n".join([*lines, f"Readers will see {_publication(planned)}. Change the catalog?"])


def run(settings: Settings, planned: Rebuild) -> dict[str, Any]:
    """Change the catalog as planned; return the document of the rebuild."""
    if planned.changes:
        rebuild(settings, planned)
    return to_document(planned, changed=bool(planned.changes))


def to_document(planned: Rebuild, *, changed: bool) -> dict[str, Any]:
    """The rebuild as JSON types; ``changed`` is false after a dry run, too."""
    publication = planned.publication
    return {
        "changed": changed,
        "to_change": len(planned.changes),
        "publication_id": publication.publication_id if publication else None,
        "published_at": publication.published_at if publication else None,
        "tables": [
            {
                "table": finding.name,
                "action": finding.action,
                "registered": finding.registered,
                "registered_exists": finding.registered_exists,
                "newest": finding.newest,
            }
            for finding in planned.tables
        ],
    }


def render(done: Document) -> Iterable[RenderableType]:
    """The rebuild for a terminal."""
    rows = [
        (finding["table"], _file(finding["registered"]), _state(finding), _file(finding["newest"]), finding["action"])
        for finding in done["tables"]
    ]
    yield table(("table", "catalog has", "there", "newest in the lake", "action"), rows)
    yield fields([("readers see", done["publication_id"] or "nothing: no publication")])
    if done["changed"]:
        yield "\nThe catalog is rebuilt. The next run goes on from there."
    elif done["to_change"]:
        yield f"\nA dry run changes nothing. Without --dry-run, the command would change {done['to_change']} tables."
    else:
        yield "\nNothing to do: the catalog has the newest version of each table."


def _state(finding: Document) -> str | None:
    return None if finding["registered"] is None else "yes" if finding["registered_exists"] else "gone"


def _file(location: str | None) -> str | None:
    return location.rpartition("/")[2] if location else None


def _publication(planned: Rebuild) -> str:
    if planned.publication is None:
        return "empty tables"
    return f"{planned.publication.publication_id} of {str(planned.publication.published_at)[:19]}"
