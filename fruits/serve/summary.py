"""What a run did, as one document and as text, from its run documents and the current publication."""

from collections.abc import Mapping, Sequence
from typing import Any

from fruits.lake.catalog import Lake, catalog_properties, spark_configuration
from fruits.lake.publication import Publication, publications
from fruits.run.documents import TaskName, read_documents
from fruits.settings import Settings

Documents = Mapping[TaskName, Mapping[str, Any]]

_SPARK_TASKS: tuple[TaskName, ...] = ("featurize", "pca", "validate")
_OBJECTS = ("create", "update", "delete", "unchanged", "quarantined", "pending")


def read_summary(settings: Settings, slug: str) -> dict[str, Any]:
    """The summary of a run, from the lake; see ``summarise``."""
    lake = Lake.open(settings)
    documents = read_documents(settings, slug)
    published = publications(lake)
    publication = published[-1] if published else None
    model_id = documents["plan"]["model_id"]
    quarantine, pca = _published_state(lake, publication, model_id) if publication else ({}, {})
    return summarise(documents, publication, quarantine, pca, settings)


def _published_state(lake: Lake, publication: Publication, model_id: str) -> tuple[dict[str, int], dict[str, Any]]:
    rows = lake.read("quarantine", publication.snapshots["quarantine"], ("reason",), model_id=model_id)
    reasons = {pair["values"]: pair["counts"] for pair in rows["reason"].value_counts().to_pylist()}
    columns = ("pca_id", "k", "n", "explained_variance_ratio")
    cards = lake.read("pca_models", publication.snapshots["pca_models"], columns, pca_id=publication.pca_id or "")
    card = next(iter(cards.to_pylist()), None)
    if card is None:
        return reasons, {}
    return reasons, {**card, "explained_variance": sum(card.pop("explained_variance_ratio"))}


def summarise(
    documents: Documents,
    publication: Publication | None,
    quarantine: Mapping[str, int],
    pca: Mapping[str, Any],
    settings: Settings,
) -> dict[str, Any]:
    """The summary of a run, JSON types; ``wall_seconds`` is the sum of its tasks'.

    ``publication`` is the current one, this run's or an older one when there was nothing to do; ``quarantine`` counts
    the objects in quarantine by reason, ``pca`` is the card of the PCA version in use.
    """
    plan, featurize = documents["plan"], documents.get("featurize", {})
    gates = documents.get("validate", {}).get("gates")
    if gates is None and publication:
        gates = [gate.to_document() for gate in publication.gates]
    counts = publication.counts or {} if publication else {}
    return {
        "run_id": plan["run_id"],
        "wall_seconds": round(sum(document.get("wall_seconds", 0.0) for document in documents.values()), 1),
        "jvm_started": sum(documents[task]["attempt"] for task in _SPARK_TASKS if task in documents),
        "work": plan["work"],
        "objects": {name: plan["counts"][name] for name in _OBJECTS},
        "features": counts.get("features", 0),
        "quarantine": dict(sorted(quarantine.items())),
        "featurize": {
            "images": featurize.get("images", 0),
            "images_per_second": featurize.get("images_per_second", 0.0),
            "seconds": dict(featurize.get("stages", {})),
        },
        "seconds": {
            task: document["wall_seconds"] for task, document in documents.items() if "wall_seconds" in document
        },
        "model_id": plan["model_id"],
        "pca": {**pca, "action": documents.get("pca", {}).get("action", "none")},
        "probe": {
            "raw": publication.probe_raw if publication else None,
            "embedded": publication.probe_embedded if publication else None,
        },
        "gates": [
            {name: gate[name] for name in ("name", "severity", "passed", "value", "threshold")} for gate in gates or ()
        ],
        "publication_id": publication.publication_id if publication else None,
        "catalog": describe_catalog(settings),
    }


def describe_catalog(settings: Settings) -> dict[str, Any]:
    """How to open the tables: ``load_catalog(name, **properties)`` in Python, ``spark`` as Spark's configuration.

    User and password of the database are left out.
    """
    properties = catalog_properties(settings)
    uri = properties.get("uri", settings.catalog_uri.get_secret_value())  # Glue has none
    if "@" in uri:
        scheme, _, rest = uri.partition("://")
        uri = f"{scheme}://{rest.rpartition('@')[2]}"
    secret = (".jdbc.user", ".jdbc.password")
    return {
        "name": settings.catalog_name,
        "uri": uri,
        "warehouse": settings.warehouse,
        "properties": {**properties, **({"uri": uri} if "uri" in properties else {})},
        "namespace": settings.namespace,
        "spark": {key: value for key, value in spark_configuration(settings).items() if not key.endswith(secret)},
    }


def as_text(summary: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    objects, featurize, pca, probe = (summary[name] for name in ("objects", "featurize", "pca", "probe"))
    quarantine = summary["quarantine"]
    rows = [
        ("objects", ", ".join(f"{objects[name]:,} {name}" for name in _OBJECTS)),
        ("features", f"{summary['features']:,} photos, backbone {summary['model_id']}"),
        ("quarantine", ", ".join(f"{count} {reason}" for reason, count in quarantine.items()) or "empty"),
        *_featurize_rows(featurize),
        *_pca_rows(pca, probe),
        ("gates", _gates(summary["gates"])),
        ("published", summary["publication_id"] or "nothing yet"),
        ("time", f"{summary['wall_seconds']:.1f} s, {summary['jvm_started']} JVMs started"),
        ("tables", f"{summary['catalog']['uri']} (Iceberg, namespace {summary['catalog']['namespace']})"),
    ]
    lines = [f"  {name:<11} {value}" for name, value in rows]
    if not summary["work"]:
        lines.insert(0, "Nothing to do: every photo in the bucket is already in the tables.")
    return "\n".join(lines)


def _featurize_rows(featurize: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    if not featurize["images"]:
        return ()
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in featurize["seconds"].items())
    return [
        (
            "featurize",
            f"{featurize['images']:,} photos at {featurize['images_per_second']:.0f} img/s (core seconds: {stages})",
        )
    ]


def _pca_rows(pca: Mapping[str, Any], probe: Mapping[str, float | None]) -> Sequence[tuple[str, str]]:
    if not pca.get("pca_id"):
        return [("pca", "none yet")]
    explained = f"{pca['explained_variance']:.1%} of the variance explained"
    rows = [("pca", f"{pca['pca_id']} ({pca['action']}): k = {pca['k']} of n = {pca['n']:,} photos, {explained}")]
    if probe["raw"] is not None:
        rows.append(
            ("probe", f"held-out accuracy {probe['raw']:.3f} on features, {probe['embedded']:.3f} on embeddings")
        )
    return rows


def _gates(gates: Sequence[Mapping[str, Any]]) -> str:
    bad = [f"{gate['name']} ({gate['severity']})" for gate in gates if not gate["passed"]]
    return f"{len(gates) - len(bad)} of {len(gates)} passed" + (f"; not: {', '.join(bad)}" if bad else "")
