"""``fruits status``: the current publication, the last runs, and the publications that a rollback can reach."""

from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from fruits.cli.output import Document, ago, fields, share, table
from fruits.cli.pin import describe
from fruits.lake.approvals import Approval, read_approvals
from fruits.lake.publication import Publication, publications, readable
from fruits.run.decisions import after_approval, described
from fruits.run.documents import RunDocuments
from fruits.serve.state import (
    State,
    describe_probe,
    error_of,
    outcome_of,
    probe_of,
    read_state,
    runs,
    wall_seconds,
)
from fruits.settings import Settings

if TYPE_CHECKING:
    from fruits.lake.catalog import Lake

_CHANGES = ("create", "update", "delete")


def read(settings: Settings, lake: "Lake", *, newest: int, with_publications: bool) -> dict[str, Any]:
    """Read the status of a lake, with its ``newest`` runs."""
    published = publications(lake)
    state = read_state(lake, published)
    return {
        "lake": settings.lake,
        "bucket": settings.bucket,
        "pin": describe(settings),
        "publication": _current(state) if state else None,
        "approvals": [_approval(approval) for approval in read_approvals(settings)],
        "runs": [describe_run(key, documents) for key, documents in islice(runs(settings), newest)],
        "publications": _history(lake, published) if with_publications else None,
    }


def _current(state: State) -> dict[str, Any]:
    publication, pca = state.publication, state.pca
    return {
        **_row(publication),
        "pca": {"k": pca.k, "n": pca.n, "explained_variance": pca.explained_variance} if pca else None,
        "quarantine": dict(state.quarantine),
        "probe": probe_of(publication),
        "gates": [asdict(gate) for gate in publication.gates],
    }


def _approval(approval: Approval) -> dict[str, Any]:
    if approval.decided:
        text, command = f"{approval.question} Approved by {approval.approved_by}. {after_approval(approval)}", None
    else:
        text, command = described(approval), approval.command
    return {**approval.to_document(), "text": text, "command": command}


def _row(publication: Publication) -> dict[str, Any]:
    return {
        "publication_id": publication.publication_id,
        "sequence": publication.sequence,
        "published_at": publication.published_at.isoformat() if publication.published_at else None,
        "run_id": publication.run_id,
        "model_id": publication.model_id,
        "pca_id": publication.pca_id,
        "features": (publication.counts or {}).get("features", 0),
        "quarantined": (publication.counts or {}).get("quarantine", 0),
        "remaining": publication.remaining,
        "ignored": (publication.counts or {}).get("ignored", 0),
    }


def _history(lake: "Lake", published: list[Publication]) -> list[dict[str, Any]]:
    """All publications, the newest first; ``can_roll_back`` says whether a rollback can reach the publication."""
    kept = {publication.sequence for publication in readable(lake, published)}
    current = published[-1].sequence if published else None
    return [
        {
            **_row(publication),
            "current": publication.sequence == current,
            "can_roll_back": publication.sequence in kept - {current},
        }
        for publication in reversed(published)
    ]


def describe_run(key: str, documents: RunDocuments) -> dict[str, Any]:
    """A run's outcome, times and counts, from its documents."""
    planned = documents.planned
    counts = planned.counts if planned else {}
    published = documents.publish.done if documents.publish else None
    first = min((document.started_at for document in documents), default=None)
    return {
        "run": key,
        "run_id": documents.plan.run_id if documents.plan else None,
        "outcome": outcome_of(documents),
        "started_at": first.isoformat() if first else None,
        "seconds": round(wall_seconds(documents), 1),
        **{name: counts.get(name, 0) for name in _CHANGES},
        "pending": counts.get("pending"),
        "ignored": counts.get("ignored"),
        "publication_id": published.publication_id if published else None,
        "error": error_of(documents),
    }


def render(status: Document) -> Iterable[RenderableType]:
    """The status for a terminal."""
    current = status["publication"]
    yield fields([("lake", status["lake"]), ("bucket", status["bucket"]), ("pinned", status["pin"])])
    yield _publication_fields(current) if current else "nothing published yet"
    for approval in status["approvals"]:
        yield f"\n{approval['text']}"
    if status["runs"]:
        columns = ("run", "started", "outcome", ">seconds", *(f">{name}" for name in _CHANGES), ">pending", ">ignored")
        yield ""
        yield table(columns, (_run_row(run) for run in status["runs"]))
        for run in status["runs"]:
            if run["error"]:
                yield f"\n{run['run']}: {run['error']}"
    if status["publications"] is not None:
        yield ""
        columns = ("publication", ">sequence", "published at", "run", ">features", ">quarantined", "roll back")
        yield table(columns, (_publication_row(publication) for publication in status["publications"]))


def _publication_fields(current: Document) -> RenderableType:
    pca, gates = current["pca"], current["gates"]
    broken = [f"{gate['name']} ({gate['severity']})" for gate in gates if not gate["passed"]]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in current["quarantine"].items())
    explained = pca and f"{current['pca_id']}: k = {pca['k']} of n = {pca['n']:,}, {share(pca['explained_variance'])}"
    return fields(
        [
            (
                "publication",
                f"{current['publication_id']}, {current['published_at'][:19]}Z ({ago(current['published_at'])})",
            ),
            ("run", current["run_id"]),
            ("backbone", current["model_id"]),
            ("features", current["features"]),
            ("quarantined", f"{current['quarantined']:,}" + (f" ({reasons})" if reasons else "")),
            ("pca", explained and f"{explained} of the variance explained"),
            ("probe", describe_probe(current["probe"])),
            (
                "gates",
                f"{len(gates) - len(broken)} of {len(gates)} passed"
                + (f"; not: {', '.join(broken)}" if broken else ""),
            ),
            (
                "remaining",
                "unknown: its run looked up single keys"
                if current["remaining"] is None
                else f"{current['remaining']:,} objects that its run left over",
            ),
            ("ignored", f"{current['ignored']:,} objects that are none of ours (FRUITS_IGNORE)"),
        ]
    )


def _run_row(run: Document) -> tuple[object, ...]:
    changes = (run[name] for name in _CHANGES)
    return (
        run["run"],
        run["started_at"] and ago(run["started_at"]),
        run["outcome"],
        run["seconds"],
        *changes,
        run["pending"],
        run["ignored"],
    )


def _publication_row(publication: Document) -> tuple[object, ...]:
    return (
        publication["publication_id"],
        publication["sequence"],
        (publication["published_at"] or "")[:19],
        publication["run_id"],
        publication["features"],
        publication["quarantined"],
        "current" if publication["current"] else "yes" if publication["can_roll_back"] else "expired",
    )
