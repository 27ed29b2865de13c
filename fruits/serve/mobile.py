"""The engine of a publication as one file for a phone: from RGB pixels to probabilities, similarities and embedding.

The publication's own backbone gets further layers: the classifier as one matrix, the PCA with whitening as another
one, and some prototypes of each label in place of the published photos. The file needs LiteRT alone.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fruits.analysis.classifier import Classifier
from fruits.analysis.pca import PCA, whiten
from fruits.analysis.prototypes import LOST, Photos, Prototypes, fit_prototypes
from fruits.backbones.flatbuffer import Graph
from fruits.backbones.metadata import NAME, Description, Output, metadata, with_files
from fruits.backbones.runtime import Backbone
from fruits.backbones.stage import load_backbone
from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.classifier_tables import load_classifier
from fruits.lake.pca_tables import load_pca
from fruits.lake.publication import Publication
from fruits.lake.reader import PublishedRows, current_publication, open_read_only
from fruits.photos.keys import FIT_SPLIT
from fruits.serve.identify import sample_rows
from fruits.serve.targets import new_file
from fruits.settings import Settings

PROTOTYPES = 16
MOST_PROTOTYPES = 64

LABELS_FILE = "labels.txt"
CARD_FILE = "fruits.json"

_FITTED_PHOTOS, _HELD_OUT_PHOTOS = 6_144, 2_048
"""Photos that prototypes are made of: about so many at most, equally many of each label."""

_COLUMNS = ("key", "label", "split", "embedding", "residual")


@dataclass(frozen=True)
class ExportedModel:
    """The result of an export: the file, its size in bytes, and the card that is in it."""

    path: Path
    bytes: int
    card: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Parts:
    """What the file is made of: a publication's backbone, classifier and PCA, and the names of publication and PCA."""

    backbone: Backbone
    classifier: Classifier
    pca: PCA
    publication_id: str
    pca_id: str


def export_model(
    settings: Settings, target: Path, *, prototypes: int = PROTOTYPES, overwrite: bool = False
) -> ExportedModel:
    """Write the engine of the current publication to ``target``, a LiteRT flatbuffer.

    The published embeddings are read twice, in batches. The same publication gives the same bytes.

    Args:
        settings: Where the lake is.
        target: The file to make.
        prototypes: Prototypes of each label, 1 to ``MOST_PROTOTYPES``.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        FruitsError: when nothing has been published, the publication has no classifier, one label alone or no photos,
            or the file can't be written.
    """
    if not 1 <= prototypes <= MOST_PROTOTYPES:
        raise FruitsError(f"prototypes {prototypes}: expected the number for each label, 1 to {MOST_PROTOTYPES}")
    with new_file(target, overwrite=overwrite) as part:
        lake = open_read_only(settings)
        publication = current_publication(lake)
        parts = _parts(settings, lake, publication)
        rows = PublishedRows(lake, publication, "embeddings", _COLUMNS)
        chosen = fit_prototypes(parts.classifier.labels, _photos(rows, parts.pca), prototypes)
        model = mobile_model(parts, chosen)
        part.write_bytes(model)
    return ExportedModel(target, len(model), card_of(parts, chosen))


def mobile_model(parts: Parts, prototypes: Prototypes) -> bytes:
    """The flatbuffer, with its metadata and files.

    Input: ``pixels``, uint8 RGB ``(1, height, width, 3)``. Outputs, all float32: ``probabilities`` and ``similarity``,
    shape ``(1, c)`` in the order of the labels, and ``embedding``, ``(1, k)``, the whitened one.
    """
    classifier, pca, graph = parts.classifier, parts.pca, Graph(parts.backbone.flatbuffer)
    weights, intercept = classifier.discriminant.weights, classifier.discriminant.intercept
    temperature = classifier.calibration.temperature
    # The softmax does not see what all labels have in common; without that, float32 keeps more digits.
    scores = graph.fully_connected(
        "scores",
        graph.output,
        (weights - weights.mean(axis=0)) / temperature,
        (intercept - intercept.mean()) / temperature,
    )
    whitening = whiten(pca, np.ones(pca.n_components)).astype(np.float64)[:, np.newaxis] * pca.components
    embedding = graph.fully_connected("embedding", graph.output, whitening, -whitening @ pca.mean)
    labels, count, k = prototypes.directions.shape
    cosines = graph.fully_connected(
        "cosines", graph.directions("direction", embedding), prototypes.directions.reshape(labels * count, k)
    )
    outputs = (graph.softmax("probabilities", scores), graph.greatest("similarity", cosines, labels), embedding)
    packed = graph.packed(outputs, {NAME: metadata(_description(parts))})
    card = json.dumps(card_of(parts, prototypes), ensure_ascii=False, indent=1)
    lines = "".join(re.sub(r"[\r\n]", " ", label) + "\n" for label in classifier.labels)
    return with_files(packed, {LABELS_FILE: lines.encode(), CARD_FILE: card.encode()})


def card_of(parts: Parts, prototypes: Prototypes) -> dict[str, Any]:
    """All that an app needs beside the outputs: labels, thresholds, versions, input; as JSON has it."""
    size, calibration = parts.backbone.card.preprocessing, parts.classifier.calibration
    return {
        "publication_id": parts.publication_id,
        "classifier_id": parts.classifier.classifier_id,
        "model_id": parts.backbone.card.model_id,
        "pca_id": parts.pca_id,
        "licence": parts.backbone.card.licence,
        "input": {
            "height": size.height,
            "width": size.width,
            "crop_share": size.crop_share,
            "resample": size.resample,
        },
        "labels": list(parts.classifier.labels),
        "set_thresholds": calibration.thresholds.tolist(),
        "set_error": calibration.error,
        "known_threshold": prototypes.threshold,
        "known_kept": 1 - LOST,
        "known_calibrated_on": prototypes.calibrated_on,
        "prototypes": prototypes.directions.shape[1],
    }


def _description(parts: Parts) -> Description:
    size, labels = parts.backbone.card.preprocessing, len(parts.classifier.labels)
    share = "" if size.crop_share is None else f" Crop the centred square, {size.crop_share:g} of the shorter side."
    return Description(
        name="fruits",
        description=f"Which of {labels} labels a photo shows.{share} Resize to {size.width} x {size.height}. "
        f"{CARD_FILE} has thresholds and versions.",
        version=parts.publication_id,
        licence=parts.backbone.card.licence,
        input="pixels",
        width=size.width,
        height=size.height,
        outputs=(
            Output("probabilities", "Probability of each label.", (0, 1), LABELS_FILE),
            Output("similarity", "Greatest cosine with a prototype of each label.", (-1, 1), LABELS_FILE),
            Output("embedding", "Whitened embedding."),
        ),
        card=CARD_FILE,
    )


def _photos(rows: PublishedRows, pca: PCA) -> Photos:
    """Whitened directions of a sample of the published photos."""
    samples = [
        sample_rows(_of_split(rows.batches(), fitted=True), _FITTED_PHOTOS),
        sample_rows(_of_split(rows.batches(), fitted=False), _HELD_OUT_PHOTOS),
    ]
    counts = [len(sample.keys) for sample in samples]
    embedding = np.concatenate([sample.embedding.reshape(-1, pca.n_components) for sample in samples])
    whitened = whiten(pca, embedding)
    lengths = np.linalg.norm(whitened, axis=1, keepdims=True)
    labels = np.array([label for sample in samples for label in sample.labels], dtype=np.str_)
    return Photos(whitened / np.maximum(lengths, np.finfo(np.float32).tiny), labels, np.repeat([False, True], counts))


def _of_split(batches: Iterator[pa.RecordBatch], *, fitted: bool) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        is_fitted = pc.equal(batch.column("split"), FIT_SPLIT)
        chosen = batch.filter(is_fitted if fitted else pc.invert(is_fitted))
        if chosen.num_rows:
            yield chosen


def _parts(settings: Settings, lake: Lake, publication: Publication) -> Parts:
    name, model_id = f"publication {publication.publication_id}", str(publication.model_id)
    classifier = load_classifier(lake, publication)
    if classifier is None:
        raise FruitsError(
            f"{name}: it has no classifier: an earlier release made it, or its fit split has no photo. The next run "
            "that changes a photo fits one, or a run with refit `always` where the lake has no sums by label"
        )
    if len(classifier.labels) == 1:
        raise FruitsError(
            f"{name}: its classifier knows {classifier.labels[0]!r} alone, so there is nothing to tell apart; upload "
            "photos of another label as <label>/<file> and run the DAG"
        )
    return Parts(
        backbone=load_backbone(settings, model_id),
        classifier=classifier,
        pca=load_pca(lake, publication),
        publication_id=str(publication.publication_id),
        pca_id=str(publication.pca_id),
    )
