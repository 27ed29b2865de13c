"""``fruits models``: the staged backbones, with the PCA versions of each."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import obstore
from rich.console import RenderableType

from fruits.analysis.quality import Quality
from fruits.backbones.card import Card
from fruits.backbones.stage import read_card
from fruits.cli.output import Document, fields, share, table
from fruits.errors import FruitsError
from fruits.lake.classifier_tables import load_classifier
from fruits.lake.publication import Publication, publications
from fruits.serve.state import FittedVersion, classified_of, fitted_versions
from fruits.settings import Settings
from fruits.stores import lake_store

if TYPE_CHECKING:
    from fruits.lake.catalog import Lake

_REGISTRY = "registry"
_CONFUSED = ("label", "taken for", ">photos", "such as")


def read(settings: Settings, lake: "Lake") -> dict[str, Any]:
    """The backbones that are staged in the lake, with their published features and PCA versions."""
    published = publications(lake)
    current = published[-1] if published else None
    features = _features(lake, current) if current else Counter()
    versions = fitted_versions(lake, current.snapshots["pca_models"]) if current else []
    folders = obstore.list_with_delimiter(lake_store(settings), prefix="models")["common_prefixes"]
    staged = sorted({PurePosixPath(name).name for name in folders} - {_REGISTRY})
    return {
        "lake": settings.lake,
        "backbones": [
            {
                **_staged(settings, model_id),
                "features": features[model_id],
                "current": current is not None and model_id == current.model_id,
                "classifier": _classifier(settings, lake, current, model_id),
                "pca_versions": [_version(version, current) for version in versions if version.model_id == model_id],
            }
            for model_id in staged
        ],
    }


def _staged(settings: Settings, model_id: str) -> dict[str, Any]:
    """The backbone's card, or the error that its file gives."""
    try:
        card = read_card(settings, model_id)
    except FruitsError as error:
        return {"model_id": model_id, "card": None, "error": str(error)}
    return {"model_id": model_id, "card": Card.to_document(card), "error": None}


def _features(lake: "Lake", current: Publication) -> Counter[str]:
    rows = lake.read("features", current.snapshots["features"], ("model_id",))["model_id"].value_counts()
    return Counter({pair["values"]: pair["counts"] for pair in rows.to_pylist()})


def _classifier(settings: Settings, lake: "Lake", current: Publication | None, model_id: str) -> dict[str, Any] | None:
    """The classifier of a backbone at the current publication; None without one."""
    if current is None or current.model_id != model_id:
        return None
    classifier = load_classifier(lake, current)
    if classifier is None:
        return None
    classified = classified_of(settings, lake, current)
    confusion = classified.confusion if classified else None
    return {
        "classifier_id": classifier.classifier_id,
        "labels": len(classifier.labels),
        "n": classifier.discriminant.n,
        "shrinkage": classifier.discriminant.shrinkage,
        "temperature": classifier.calibration.temperature,
        "calibrated_on": classifier.calibrated_on,
        "calibration_photos": classifier.calibration.n,
        "quality": asdict(classifier.quality) if classifier.quality else None,
        "confused": [asdict(pair) for pair in confusion.pairs] if confusion else [],
    }


def _version(version: FittedVersion, current: Publication | None) -> dict[str, Any]:
    return {
        "pca_id": version.pca_id,
        "model_id": version.model_id,
        "k": version.k,
        "n": version.n,
        "explained_variance": version.explained_variance,
        "fitted_at": version.fitted_at.isoformat(),
        "reason": version.reason,
        "current": current is not None and version.pca_id == current.pca_id,
    }


def render(models: Document) -> Iterable[RenderableType]:
    """The backbones for a terminal."""
    if not models["backbones"]:
        yield f"No backbone is staged in {models['lake']} yet; the first run builds one."
    for place, backbone in enumerate(models["backbones"]):
        if place:
            yield ""
        card = backbone["card"] or {}
        size = f"{card['flatbuffer_bytes'] / 1e6:.1f} MB" if card else None
        yield fields(
            [
                ("backbone", f"{backbone['model_id']}{' (current)' if backbone['current'] else ''}"),
                ("error", backbone["error"]),
                ("weights", card.get("weights")),
                ("precision", _precision(card) if card else None),
                ("licence", card.get("licence")),
                ("width", card.get("feature_width")),
                ("size", size),
                ("features", backbone["features"]),
            ]
        )
        if classifier := backbone["classifier"]:
            yield fields(_classifier_fields(classifier))
            if classifier["confused"]:
                yield table(_CONFUSED, (_confused_row(pair) for pair in classifier["confused"]))
        if backbone["pca_versions"]:
            columns = ("pca version", ">k", ">n", ">explained", "fitted at", "why", "")
            yield table(columns, (_version_row(version) for version in backbone["pca_versions"]))


def _classifier_fields(classifier: Document) -> list[tuple[str, object]]:
    quality = Quality(**classifier["quality"]) if classifier["quality"] else "too few photos to tell"
    return [
        ("classifier", f"{classifier['classifier_id']}: {classifier['labels']} labels, n {classifier['n']:,}"),
        ("calibrated on", f"{classifier['calibration_photos']:,} {classifier['calibrated_on']}"),
        ("quality", quality),
    ]


def _confused_row(pair: Document) -> tuple[object, ...]:
    return pair["label"], pair["likeliest"], pair["n"], pair["keys"][0]


def _precision(card: Document) -> str:
    """``fp32``, or ``int8`` with the pictures that its ranges were measured on."""
    calibration = card["calibration"]
    return f"{card['precision']}, calibrated on {calibration['name']}" if calibration else str(card["precision"])


def _version_row(version: Document) -> tuple[object, ...]:
    identity = version["pca_id"], version["k"], version["n"], share(version["explained_variance"])
    return *identity, version["fitted_at"][:19], version["reason"], "current" if version["current"] else ""
