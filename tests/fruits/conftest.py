"""A published lake without Spark: the rows that the jobs would write, through PyIceberg, published as a run's are."""

import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fruits.analysis.classifier import Sample, fit_classifier
from fruits.analysis.labels import sums_of
from fruits.analysis.moments import moments_of
from fruits.analysis.pca import PCA, fit, pca_identity, transform
from fruits.lake.branches import Writer, commit_rows, drop_run_branches, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.classifier_tables import save_classifier
from fruits.lake.pca_tables import PCAVersion, save_version
from fruits.lake.publication import Base, Publication, current_base, publication_id, publish
from fruits.lake.schemas import DATA_TABLES, EMBEDDINGS, FEATURES, QUARANTINE, TableDefinition
from fruits.photos.keys import FIT_SPLIT
from fruits.settings import Settings

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
Rows = Mapping[str, np.ndarray]  # feature vectors by keys `<split>/<label>/<file>`


class FakeRun:
    """A run that writes what it is told, on the branches of a real lake; ``n_components`` as its PCA says was asked."""

    n_components = "0.95"

    def __init__(self, settings: Settings) -> None:
        self.lake = Lake.open(settings)
        self.base: Base = current_base(self.lake)
        self.key = uuid.uuid4().hex[:8]
        self.writer = Writer(self.key, "featurize_1_ab")
        self.branch = self.writer.branch
        published = self.base.publication
        self.classifiers: dict[str, str | None] = {str(published.model_id): published.classifier_id}
        for name in DATA_TABLES:
            start_branch(self.lake, name, self.branch, self.base.publication.snapshots[name])

    def write(self, photos: Rows, model_id: str, *, pca: PCA | None = None) -> str:
        """Features, the PCA of those in `train` unless one is given, and embeddings; returns the PCA's identity."""
        if pca is None:
            fitted = [vector for key, vector in photos.items() if key.startswith(FIT_SPLIT)]
            pca = fit(moments_of(np.stack(fitted)), 0.95, 160)
        pca_id = pca_identity(model_id, pca)
        version = PCAVersion(pca_id, model_id, pca, self.n_components, None, 1, "first fit", self.key, NOW)
        save_version(self.lake, self.writer, version)
        embedding, residual = transform(pca, np.stack(list(photos.values())))
        common = [self._common(key, model_id) for key in photos]
        stored = {"size": 1, "last_modified": NOW, "sha256": "0", "phash": -1, "width": 8, "height": 9, "format": "PNG"}
        vectors = [{"vector": vector.tolist()} for vector in photos.values()]
        self._append(FEATURES, [{**one, **stored, **vector} for one, vector in zip(common, vectors, strict=True)])
        projected = zip(common, embedding.tolist(), residual.tolist(), strict=True)
        rows = [{**one, "pca_id": pca_id, "embedding": vector, "residual": rest} for one, vector, rest in projected]
        self._append(EMBEDDINGS, rows)
        return pca_id

    def classify(self, photos: Rows, model_id: str) -> None:
        """The classifier of the photos in `train`, calibrated on all of them."""
        keys = sorted(photos)
        vectors = np.stack([photos[key] for key in keys])
        labels, fitted = ([key.split("/")[-2] for key in keys], np.array([key.startswith(FIT_SPLIT) for key in keys]))
        sums = sums_of(vectors[fitted], [label for label, is_fitted in zip(labels, fitted, strict=True) if is_fitted])
        classifier = fit_classifier(moments_of(vectors[fitted]), sums, Sample(keys, labels, fitted, vectors))
        save_classifier(self.lake, self.writer, model_id, classifier, self.key)
        self.classifiers[model_id] = classifier.classifier_id

    def quarantine(self, keys: Sequence[str], model_id: str) -> None:
        """Rows of quarantine, with a detail that is hard to quote."""
        told = {"etag": "e", "size": 0, "last_modified": NOW, "model_id": model_id, "reason": "empty"}
        told |= {"detail": 'a "word", a comma\nand a line', "run_id": self.key}
        rows = [{"key": key, **told} for key in keys]
        self._append(QUARANTINE, rows)

    def publish(self, model_id: str, pca_id: str) -> Publication:
        """Publish what is on the branches."""
        snapshots = {name: self.lake.head(name, self.branch) for name in DATA_TABLES}
        sequence = self.base.publication.sequence + 1
        identity = publication_id(sequence, snapshots)
        row = Publication(sequence, snapshots, identity, self.key, NOW, model_id, pca_id, {})
        return self.publish_row(replace(row, classifier_id=self.classifiers.get(model_id)))

    def publish_row(self, row: Publication) -> Publication:
        """Publish a row."""
        done = publish(self.lake, self.base, self.writer, row)
        drop_run_branches(self.lake, self.key)
        return done

    def _common(self, key: str, model_id: str) -> dict[str, Any]:
        split, label = key.split("/")[-3:-1]
        return {"key": key, "etag": "e", "label": label, "split": split, "model_id": model_id, "run_id": self.key}

    def _append(self, definition: TableDefinition, rows: Sequence[Mapping[str, Any]]) -> None:
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=definition.schema)
        commit = self.writer.commit
        commit_rows(self.lake, definition.name, lambda change: change.append(table, **commit))


@pytest.fixture(scope="session")
def fake_run() -> type[FakeRun]:
    """Starts a run on the lake of some settings."""
    return FakeRun


@pytest.fixture(scope="session")
def as_made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Settings]:
    """Gives a lake in a folder as a function makes it, which is called once a session with the lake's settings.

    The files of a lake name their own folder, so a copy of them is a lake only in that folder: tests have it one after
    another. What a lake is depends on the function and on the further arguments.
    """
    made: dict[tuple[object, ...], tuple[Settings, Path, Path]] = {}

    def give(make: Callable[..., object], *arguments: str) -> Settings:
        if (make, *arguments) not in made:
            folder, original = (tmp_path_factory.mktemp(name) for name in ("lake", "original"))
            settings = Settings.load(lake=f"file://{folder}/lake", catalog_uri=f"sqlite:///{folder}/catalog.db")
            make(settings, *arguments)
            made[make, *arguments] = (settings, folder, original)
            shutil.copytree(folder, original, dirs_exist_ok=True)
        settings, folder, original = made[make, *arguments]
        shutil.rmtree(folder)
        shutil.copytree(original, folder)
        return settings

    return give


@pytest.fixture
def folder_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a lake in a folder, with nothing in it; it needs no S3 server."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FRUITS_{name.upper()}", raising=False)
    return Settings.load(lake=f"file://{tmp_path}/lake", catalog_uri=f"sqlite:///{tmp_path}/catalog.db")
