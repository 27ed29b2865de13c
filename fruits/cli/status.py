"""``fruits status``: what readers see now, the last runs, and where one can roll back to."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType

from fruits.cli.output import Document, ago, fields, share, table
from fruits.lake.publication import Publication, publications, readable
from fruits.run.documents import current_documents, last_written, of_maintenance, read_documents
from fruits.serve.report.reading import outcome_of
from fruits.settings import Settings

if TYPE_CHECKING:
    from fruits.lake.catalog import Lake

_CHANGES = ("create", "update", "delete")


def read(settings: Settings, lake: "Lake", *, runs: int, with_publications: bool) -> dict[str, Any]:
    """The status of a lake, with its newest ``runs`` runs. Reads only."""
    published = publications(lake)
    return {
        "lake": settings.lake,
        "bucket": settings.bucket,
        "publication": _current(lake, published[-1]) if published else None,
        "runs": list(islice(chain_runs(settings), runs)),
        "publications": _history(lake, published) if with_publications else None,
    }


def _current(lake: "Lake", publication: Publication) -> dict[str, Any]:
    reasons = lake.read(
        "quarantine", publication.snapshots["quarantine"], ("reason",), model_id=str(publication.model_id)
    )["reason"].value_counts()
    columns = ("k", "n", "explained_variance_ratio")
    cards = lake.read("pca_models", publication.snapshots["pca_models"], columns, pca_id=publication.pca_id or "")
    pca = [
        {"k": card["k"], "n": card["n"], "explained_variance": sum(card["explained_variance_ratio"])}
        for card in cards.to_pylist()
    ]
    return {
        **_row(publication),
        "pca": next(iter(pca), None),
        "quarantine": dict(sorted((pair["values"], pair["counts"]) for pair in reasons.to_pylist())),
        "probe": {"raw": publication.probe_raw, "embedded": publication.probe_embedded},
        "gates": [gate.to_document() for gate in publication.gates],
    }


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
        "remaining": (publication.counts or {}).get("remaining", 0),
    }


def _history(lake: "Lake", published: list[Publication]) -> list[dict[str, Any]]:
    """All publications, the newest first, with whether they can be rolled back to."""
    kept = {one.sequence for one in readable(lake, published)}
    current = published[-1].sequence if published else None
    return [
        {**_row(one), "current": one.sequence == current, "can_roll_back": one.sequence in kept - {current}}
        for one in reversed(published)
    ]


def chain_runs(settings: Settings) -> Iterator[dict[str, Any]]:
    """The runs of the chain, not those of maintenance, the newest first; each is read when it is asked for."""
    for slug in last_written(settings):
        documents = current_documents(read_documents(settings, slug))
        if not of_maintenance(documents):
            yield describe_run(documents, slug)


def describe_run(documents: Mapping[Any, Mapping[str, Any]], slug: str) -> dict[str, Any]:
    """What became of a run, from its documents."""
    plan = documents.get("plan", {})
    counts = plan.get("counts", {})
    first = min((document["started_at"] for document in documents.values()), default=None)
    return {
        "run": slug,
        "run_id": plan.get("run_id"),
        "outcome": outcome_of(documents),
        "started_at": first,
        "seconds": round(sum(document.get("wall_seconds", 0.0) for document in documents.values()), 1),
        **{name: counts.get(name, 0) for name in _CHANGES},
        "pending": counts.get("pending"),
        "publication_id": documents.get("publish", {}).get("publication_id"),
        "error": next((document["error"] for document in documents.values() if "error" in document), None),
    }


def render(status: Document) -> Iterable[RenderableType]:
    """For a terminal."""
    current = status["publication"]
    yield fields([("lake", status["lake"]), ("bucket", status["bucket"])])
    yield _publication_fields(current) if current else "nothing published yet"
    if status["runs"]:
        columns = ("run", "started", "outcome", ">seconds", *(f">{name}" for name in _CHANGES), ">pending")
        yield ""
        yield table(columns, (_run_row(run) for run in status["runs"]))
        for run in status["runs"]:
            if run["error"]:
                yield f"\n{run['run']}: {run['error']}"
    if status["publications"] is not None:
        yield ""
        columns = ("publication", ">sequence", "published at", "run", ">features", ">quarantined", "roll back")
        yield table(columns, (_publication_row(one) for one in status["publications"]))


def _publication_fields(current: Document) -> RenderableType:
    pca, probe, gates = current["pca"], current["probe"], current["gates"]
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
            (
                "probe",
                None
                if probe["raw"] is None
                else f"{probe['raw']:.3f} on features, {probe['embedded']:.3f} on embeddings",
            ),
            (
                "gates",
                f"{len(gates) - len(broken)} of {len(gates)} passed"
                + (f"; not: {', '.join(broken)}" if broken else ""),
            ),
            ("remaining", f"{current['remaining']:,} objects that its run left over"),
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
    )


def _publication_row(one: Document) -> tuple[object, ...]:
    possible = "current" if one["current"] else "yes" if one["can_roll_back"] else "expired"
    identity = one["publication_id"], one["sequence"], (one["published_at"] or "")[:19]
    return *identity, one["run_id"], one["features"], one["quarantined"], possible
