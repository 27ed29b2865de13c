"""A published lake without Spark: rows written by PyIceberg, documents as the tasks write them, photos in a bucket."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import obstore
import pyarrow as pa
import pytest

from fruits.analysis.gates import Gate
from fruits.lake.catalog import RUN_PROPERTY, Lake
from fruits.lake.publication import Base, Publication, _to_rows, publications
from fruits.lake.schemas import DATA_TABLES, EMBEDDINGS, PCA_MODELS, QUARANTINE
from fruits.run.documents import TaskDocument
from fruits.run.request import RunRequest
from fruits.settings import Settings
from fruits.stores import photo_store, write_bytes
from local.stack import Stack, make_bucket
from sample_photos import draw
from tests.runs import (
    MODEL_ID,
    RUN_ID,
    START,
    base,
    document,
    featurized,
    planned,
    projected,
    validated,
    write_documents,
)
from tests.runs import published as published_

PCA_ID = "pca-1"
LABELS = ("Apple Red", "Banana", "Kiwi")
RATIOS = (0.5, 0.25, 0.125)
COUNTS = {"create": 5, "update": 2, "delete": 1, "unchanged": 0, "quarantined": 0, "pending": 7}
FEATURIZED = featurized(images=94, images_per_second=67.1, bytes=8_000_000, photo_seconds={"get": 0.1, "infer": 3.1},
                        pending={"unanswered": 3, "vanished": 1})  # fmt: skip
GATES = (
    Gate("probe", "required", True, 0.97, 0.9, "kept"),
    Gate("drift", "warn", False, 0.2, 0.05, "drifted"),
    Gate("labels_fitted", "warn", True, None, 0.0, "all"),
)


def start_of(lake: Lake, sequence: int = 0, pca_id: str | None = None, model_id: str | None = MODEL_ID) -> Base:
    """Where a plan starts from: what is on ``main`` of each table."""
    snapshots = {name: lake.head(name) for name in DATA_TABLES}
    return base(sequence, snapshots, int(lake.head("publications") or 0), pca_id=pca_id, model_id=model_id)


def plan(lake: Lake, run_id: str = RUN_ID, **changed: Any) -> TaskDocument[Any]:
    """The document of a plan that has work to do."""
    values = {"base": start_of(lake), "counts": COUNTS, "request": RunRequest(prefix="", limit=7), **changed}
    return document("plan", 0, planned(run_id, **values))


def quarantined(key: str, etag: str, reason: str, size: int, minute: int = 0) -> dict[str, Any]:
    """A row of the table ``quarantine``."""
    moment = START + timedelta(minutes=minute)
    row = {"key": key, "etag": etag, "size": size, "last_modified": moment, "model_id": MODEL_ID, "reason": reason}
    return {**row, "detail": f"{key}: {reason}", "run_id": RUN_ID}


def embedding(key: str, label: str, x: float, y: float, pca_id: str = PCA_ID) -> dict[str, Any]:
    """A row of the table ``embeddings`` with three components."""
    row = {"key": key, "etag": "e", "label": label, "split": "train", "model_id": MODEL_ID, "pca_id": pca_id}
    return {**row, "embedding": [x, y, 0.5], "residual": 0.1, "run_id": RUN_ID}


def append(lake: Lake, definition: Any, rows: list[dict[str, Any]]) -> None:
    """Append rows to ``main`` of a table."""
    lake.table(definition.name).append(pa.Table.from_pylist(rows, schema=definition.schema))


def publication(lake: Lake, sequence: int, **changed: Any) -> Publication:
    """A publication of what is on ``main`` of each table."""
    given: dict[str, Any] = {
        "sequence": sequence,
        "snapshots": {name: lake.head(name) for name in DATA_TABLES},
        "publication_id": f"pub-{sequence:06d}-abcdef",
        "run_id": RUN_ID,
        "published_at": START + timedelta(hours=sequence),
        "model_id": MODEL_ID,
        "pca_id": PCA_ID,
        "counts": {**COUNTS, "features": 90, "quarantine": 4},
        "probe_raw": 0.91,
        "probe_embedded": 0.885,
        "gates": GATES,
    }
    return Publication(**{**given, **changed})


def publish(lake: Lake, *changed: Mapping[str, Any]) -> None:
    """Publish what is on ``main`` of each table, as often as there are changes to what is published."""
    start = len(publications(lake)) + 1
    rows = [_to_rows(publication(lake, start + number, **one)) for number, one in enumerate(changed or ({},))]
    lake.table("publications").append(pa.concat_tables(rows), snapshot_properties={RUN_PROPERTY: "run"})


def upload(settings: Settings, key: str, data: bytes) -> str:
    """Put an object into the bucket; returns its ETag."""
    store = photo_store(settings)
    write_bytes(store, key, data)
    return str(obstore.head(store, key)["e_tag"]).strip('"')


def fill(settings: Settings) -> Settings:
    """Make a lake with one publication of 90 embeddings and four quarantined objects, and its run."""
    lake = Lake.open(settings)
    photo = draw("Kiwi", "Training", 1, size=(100, 160))
    objects = {"stray.jpg": photo, "Kiwi/page.jpg": b"<html>503", "Kiwi/none.jpg": b"", "Kiwi/old.jpg": b"new bytes"}
    etags = {key: upload(settings, key, data) for key, data in objects.items()} | {"Kiwi/old.jpg": "another"}
    reasons = dict(zip(objects, ("key_pattern", "not_an_image", "empty", "not_an_image"), strict=True))
    append(lake, QUARANTINE, [quarantined(key, etags[key], reasons[key], len(objects[key])) for key in objects])
    append(lake, PCA_MODELS, [pca_model()])
    points = [(f"{number}.jpg", LABELS[number % 3], float(number), number / 2) for number in range(90)]
    append(lake, EMBEDDINGS, [embedding(*point) for point in points])
    append(lake, EMBEDDINGS, [embedding("other.jpg", "Kiwi", 1e6, 1e6, pca_id="pca-0")])
    first = start_of(lake)
    wrote = {name: lake.head(name) for name in DATA_TABLES}
    publish(lake)
    write_documents(
        settings,
        plan(lake, base=first),
        document("featurize", 1, FEATURIZED.model_copy(update={"wrote": wrote})),
        document("pca", 2, projected(read=wrote, wrote=wrote)),
        document("validate", 3, validated(gates=GATES, snapshots=wrote)),
        document("publish", 4, published_(), seconds={}),
    )
    return settings


@pytest.fixture
def put(settings: Settings) -> Callable[[str, bytes], str]:
    """Puts an object into the bucket; returns its ETag."""
    return partial(upload, settings)


@pytest.fixture(scope="session")
def filled(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a filled lake that tests only read."""
    folder = tmp_path_factory.mktemp("filled")
    make_bucket(stack, "photos-of-the-filled-lake")
    return fill(
        Settings.load(
            bucket="photos-of-the-filled-lake",
            lake=f"file://{folder}/lake",
            catalog_uri=f"sqlite:///{folder}/catalog.db",
            s3_endpoint=stack.endpoint,
        )
    )


@pytest.fixture
def published(settings: Settings) -> Settings:
    """Settings of a filled lake of this test's own."""
    return fill(settings)


def pca_model(pca_id: str = PCA_ID) -> dict[str, Any]:
    """A row of the table ``pca_models``."""
    return {
        "pca_id": pca_id, "model_id": MODEL_ID, "n": 70, "k": 3, "n_components": "0.95", "mean": [0.0] * 4,
        "components": [[1.0, 0.0, 0.0, 0.0]] * 3, "explained_variance": [4.0, 2.0, 1.0],
        "explained_variance_ratio": list(RATIOS), "total_variance": 8.0, "held_out_unexplained": 0.2,
        "fit_split": "train", "features_snapshot_id": 1, "reason": "first fit", "fitted_at": START, "run_id": RUN_ID,
    }  # fmt: skip
