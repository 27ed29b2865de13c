"""The real command line, on a small published lake and a bucket beside it."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from fruits.backbones.stage import staged_card
from fruits.cli.app import app
from fruits.lake.catalog import Lake
from fruits.lake.publication import Publication, publication_id
from fruits.lake.schemas import DATA_TABLES
from fruits.lake.source import bind_source
from fruits.run.documents import task_document
from fruits.settings import Settings
from fruits.stores import photo_store, write_bytes
from local.stack import make_bucket
from tests.runs import NO_OBJECTS, planned

QUARANTINED = ("train/Kiwi/\x1b[31mempty.jpg", "train/Kiwi/empty.jpg")

Fruits = Callable[..., Result]


@pytest.fixture
def fruits(stack, monkeypatch) -> Fruits:
    """The command `fruits` with its arguments, on the lake of some settings."""

    def call(*arguments: object, settings: Settings | None = None, **options: object) -> Result:
        for name in [name for name in os.environ if name.startswith("FRUITS_")]:
            monkeypatch.delenv(name)
        for name, value in (variables(settings) if settings else {}).items():
            monkeypatch.setenv(name, value)
        return CliRunner().invoke(app, [str(one) for one in arguments], prog_name="fruits", **options)

    return call


@pytest.fixture
def answer(fruits) -> Callable[..., object]:
    """The JSON document of a command that succeeds."""

    def call(*arguments: object, settings: Settings) -> object:
        result = fruits(*arguments, "--json", settings=settings)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return call


def variables(settings: Settings) -> dict[str, str]:
    """The settings that make a lake and its bucket, as environment variables."""
    values = {
        "FRUITS_LAKE": settings.lake,
        "FRUITS_CATALOG_URI": settings.catalog_uri.get_secret_value(),
        "FRUITS_BUCKET": settings.bucket,
        "FRUITS_PREFIX": settings.prefix or None,
        "FRUITS_S3_ENDPOINT": settings.s3_endpoint,
        "FRUITS_INDEX_FOLDER": str(settings.index_folder),
        "FRUITS_WEIGHTS": settings.weights,
        "FRUITS_WEIGHTS_FROM": ",".join(settings.weights_from),
    }
    return {name: value for name, value in values.items() if value is not None}


@pytest.fixture
def environment_of(stack) -> Callable[[Settings], dict[str, str]]:
    """The environment of a program on the lake of some settings."""
    return lambda settings: {**stack.environment, **variables(settings)}


def vectors(seed: int) -> dict[str, np.ndarray]:
    """Feature vectors of six photos of two labels."""
    generator = np.random.default_rng(seed)
    keys = [f"train/{label}/{number}.jpg" for label in ("Banana", "Kiwi") for number in range(seed, seed + 3)]
    return {key: generator.random(1280, dtype=np.float32) for key in keys}


def publish_run(run, model_id: str, pca_id: str, features: int) -> None:
    """Publish what is on a run's branches with the counts that a real one has."""
    snapshots = {name: run.lake.head(name, run.branch) for name in DATA_TABLES}
    sequence = run.base.publication.sequence + 1
    counts = dict.fromkeys(("create", "update", "delete", "unchanged", "quarantined", "pending"), 0)
    row = Publication(
        sequence=sequence,
        snapshots=snapshots,
        publication_id=publication_id(sequence, snapshots),
        run_id=run.key,
        published_at=datetime.now(UTC),
        model_id=model_id,
        pca_id=pca_id,
        classifier_id=run.classifiers.get(model_id),
        counts={**counts, "features": features, "quarantine": len(QUARANTINED), "remaining": 4},
    )
    run.publish_row(row)


@pytest.fixture(scope="session")
def new_lake(stack, staged_models, fake_run) -> Callable[[Path], Settings]:
    """Makes a lake of two publications, of 6 and 12 photos, with two objects in quarantine; its bucket is empty."""

    def make(folder: Path) -> Settings:
        bucket = f"photos-{folder.name.replace('_', '-').lower()[-40:]}"
        make_bucket(stack, bucket)
        shutil.copytree(staged_models, folder / "lake" / "models")
        settings = Settings.load(
            lake=f"file://{folder}/lake",
            catalog_uri=f"sqlite:///{folder}/catalog.db",
            bucket=bucket,
            s3_endpoint=stack.endpoint,
        )
        card = staged_card(settings)
        assert card is not None
        bind_source(Lake.open(settings))
        for seed in (0, 3):
            run = fake_run(settings)
            pca_id = run.write(vectors(seed), card.model_id)
            run.classify(vectors(seed), card.model_id)
            if seed == 0:
                run.quarantine(QUARANTINED, card.model_id)
            publish_run(run, card.model_id, pca_id, features=seed * 2 + 6)
        return settings

    return make


@pytest.fixture(scope="session")
def published(new_lake, tmp_path_factory) -> Settings:
    """Such a lake with two runs' documents, and a bucket in which a run finds work. Not to be changed by tests."""
    settings = new_lake(tmp_path_factory.mktemp("published"))
    # In the order of their keys, which is also that of uploads within one second: a limit takes the oldest first.
    for key in ("stray.jpg", "train/Banana/0.jpg", "train/Kiwi/new.jpg", "train/kiwi/._new.jpg"):
        write_bytes(photo_store(settings), key, b"not a photo")
    some = {"create": 7, "update": 1, "delete": 2, "pending": 3, "ignored": 5}
    quiet = planned("scheduled__1", key="scheduled_1", work=False, counts=NO_OBJECTS)
    busy = planned("manual__2", key="manual_2", counts={**NO_OBJECTS, **some})
    for run in (quiet, busy):
        with task_document(settings, "plan", run.key, run.run_id) as document:
            document.record(run)
    with pytest.raises(RuntimeError), task_document(settings, "featurize", "manual_2", "manual__2", busy.planned_at):
        raise RuntimeError("the disk is full")
    return settings
