"""What a run did, as one document and as text, from its run documents and the current publication."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fruits.analysis.gates import Gate
from fruits.analysis.quality import Quality
from fruits.errors import FruitsError
from fruits.lake.catalog import Lake, catalog_properties, spark_configuration
from fruits.photos.ignore import Names
from fruits.run.decisions import described
from fruits.run.documents import Classified, RunDocuments, read_documents
from fruits.serve.state import State, describe_probe, probe_of, read_state, wall_seconds
from fruits.settings import Settings

_OBJECTS = ("create", "update", "delete", "unchanged", "quarantined", "pending", "ignored")
_GATE = ("name", "severity", "passed", "value", "threshold")


def read_summary(settings: Settings, run: str) -> dict[str, Any]:
    """The summary of a run, by its key, from the lake; see ``summarise``."""
    return summarise(read_documents(settings, run), read_state(Lake.open(settings)), settings)


def summarise(documents: RunDocuments, state: State | None, settings: Settings) -> dict[str, Any]:
    """The summary of a planned run, JSON types; ``wall_seconds`` is the sum of its tasks'.

    ``state`` is that of the current publication: the run's own, or an older one when the run had nothing to do.

    Raises:
        FruitsError: when the run has no finished plan.
    """
    planned = documents.planned
    if planned is None:
        raise FruitsError("summary: the run has no finished plan")
    publication = state.publication if state else None
    featurized, projected, validated = documents.featurized, documents.projected, documents.validated
    gates: Sequence[Gate] = validated.gates if validated else publication.gates if publication else ()
    spark_jobs = (documents.featurize, documents.pca, documents.validate)
    return {
        "run_id": planned.run_id,
        "wall_seconds": round(wall_seconds(documents), 1),
        "jvm_started": sum("session" in document.seconds for document in spark_jobs if document),
        "work": planned.work,
        "pinned": planned.pinned,
        "objects": {name: planned.counts.get(name, 0) for name in _OBJECTS},
        "ignored": {rule: names.to_document() for rule, names in planned.ignored.items()},
        "features": (publication.counts or {}).get("features", 0) if publication else 0,
        "quarantine": dict(state.quarantine) if state else {},
        "featurize": {
            "images": featurized.images if featurized else 0,
            "images_per_second": featurized.images_per_second if featurized else 0.0,
            "seconds": dict(featurized.photo_seconds) if featurized else {},
        },
        "seconds": {
            document.task: document.wall_seconds for document in documents if document.wall_seconds is not None
        },
        "model_id": planned.model_id,
        "pca": {**_pca(state), "action": projected.action if projected else "none"},
        "classifier": _classifier(projected.classified if projected else None),
        "probe": probe_of(publication),
        "gates": [{name: value for name, value in asdict(gate).items() if name in _GATE} for gate in gates],
        "publication_id": publication.publication_id if publication else None,
        "undecided": [described(question) for question in documents.undecided],
        "catalog": describe_catalog(settings),
    }


def _pca(state: State | None) -> dict[str, Any]:
    if state is None or state.pca is None:
        return {}
    pca = state.pca
    return {"pca_id": pca.pca_id, "k": pca.k, "n": pca.n, "explained_variance": pca.explained_variance}


def _classifier(classified: Classified | None) -> dict[str, Any] | None:
    """The classifier that the run fitted; None without one."""
    if classified is None:
        return None
    quality, confusion = classified.quality, classified.confusion
    return {
        "classifier_id": classified.classifier_id,
        "labels": classified.labels,
        "n": classified.n,
        "quality": asdict(quality) if quality else None,
        "confused": [asdict(pair) for pair in confusion.pairs] if confusion else [],
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
        *[("ignored", f"{rule} {Names(**names)}") for rule, names in summary["ignored"].items()],
        *_featurize_rows(featurize),
        *_pca_rows(pca, probe),
        *_classifier_rows(summary["classifier"]),
        ("gates", _gates(summary["gates"])),
        ("published", summary["publication_id"] or "nothing yet"),
        ("time", f"{summary['wall_seconds']:.1f} s, {summary['jvm_started']} JVMs started"),
        ("tables", f"{summary['catalog']['uri']} (Iceberg, namespace {summary['catalog']['namespace']})"),
    ]
    lines = [f"  {name:<11} {value}" for name, value in rows]
    lines += [f"  waits       {question}" for question in summary["undecided"]]
    if summary["pinned"]:
        lines.insert(0, f"{summary['pinned']}: the run published nothing; `fruits unpin` lets runs go on.")
    elif not summary["work"] and not summary["undecided"]:
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


def _pca_rows(pca: Mapping[str, Any], probe: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    if not pca.get("pca_id"):
        return [("pca", "none yet")]
    explained = f"{pca['explained_variance']:.1%} of the variance explained"
    rows = [("pca", f"{pca['pca_id']} ({pca['action']}): k = {pca['k']} of n = {pca['n']:,} photos, {explained}")]
    if figures := describe_probe(probe):
        rows.append(("probe", f"held-out accuracy {figures}"))
    return rows


def _classifier_rows(classifier: Mapping[str, Any] | None) -> Sequence[tuple[str, str]]:
    if classifier is None:
        return ()
    quality = Quality(**classifier["quality"]) if classifier["quality"] else "too few photos to tell its quality"
    return [("classifier", f"{classifier['classifier_id']}: {quality}")]


def _gates(gates: Sequence[Mapping[str, Any]]) -> str:
    bad = [f"{gate['name']} ({gate['severity']})" for gate in gates if not gate["passed"]]
    return f"{len(gates) - len(bad)} of {len(gates)} passed" + (f"; not: {', '.join(bad)}" if bad else "")
