"""What a retry of `featurize` makes of the rows that the attempts before have committed. No Spark."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fruits.lake.catalog import Lake
from fruits.photos.entry import Action, Entry
from fruits.run.documents import run_store
from fruits.run.manifest import StoredManifest, entries_batch, write_manifest
from fruits.settings import Settings
from fruits.spark import featurizing
from fruits.spark.featurizing import counts_there, pieces_to_do
from tests.runs import MODEL_ID

START = datetime(2026, 11, 20, tzinfo=UTC)
KEYS = [f"train/Kiwi/{number:02}.jpg" for number in range(40)]


@pytest.fixture
def attempt(folder_lake: Settings, fake_run: Any) -> tuple[Any, StoredManifest, Any]:
    """A job whose attempt before has read ten photos and quarantined two; the uploads were not in the order of keys."""
    run = fake_run(folder_lake)
    start = run.base.publication.snapshots
    run.write(
        {key: np.random.default_rng(7).random(4, dtype=np.float32) * place for place, key in enumerate(KEYS[::4])},
        MODEL_ID,
    )
    run.quarantine(KEYS[1:3], MODEL_ID)
    heads = {name: run.lake.head(name, run.branch) for name in ("features", "quarantine")}
    planned = SimpleNamespace(model_id=MODEL_ID, run_id=run.key)
    job = SimpleNamespace(settings=folder_lake, lake=run.lake, run=planned, start=start)
    order = np.random.default_rng(8).permutation(KEYS)
    entry = Entry("", "e", 1, START, Action.CREATE, "Kiwi", "train")
    entries = [replace(entry, key=str(key), last_modified=START + timedelta(at)) for at, key in enumerate(order)]
    store = run_store(folder_lake, "r")
    write_manifest(store, [entries_batch(entries)])
    return job, StoredManifest(store), heads


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each batch that is read of the tables; nothing else is."""
    rows: list[int] = []
    batches = Lake.batches

    def noted(self: Lake, *scan: Any, **conditions: Any) -> Any:
        for batch in batches(self, *scan, **conditions):
            rows.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(Lake, "batches", noted)
    monkeypatch.setattr(Lake, "read", None)
    return rows


def test_a_retry_holds_the_rows_of_a_slice_of_the_manifest_only(
    attempt: Any, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(featurizing, "_ASKED_AT_ONCE", 4)
    job, manifest, heads = attempt
    pieces = list(pieces_to_do(job, manifest, heads))
    left = [key for piece in pieces for key in piece.photos.table["key"].to_pylist()]
    assert sorted(left) == sorted({*KEYS} - {*KEYS[::4], *KEYS[1:3]})
    assert max(read) <= 4
    assert sum(read) == 12


def test_a_retry_counts_batch_by_batch(attempt: Any, read: list[int]) -> None:
    job, _, heads = attempt
    there = counts_there(job, heads)
    assert (there.images, there.features, there.quarantine, there.bytes) == (12, 10, {"empty": 2}, 10)
    assert sum(read) == 12


def test_the_first_attempt_reads_nothing(attempt: Any, read: list[int]) -> None:
    job, manifest, _ = attempt
    (piece,) = pieces_to_do(job, manifest, job.start)
    assert len(piece.photos) == 40
    assert (counts_there(job, job.start).images, read) == (0, [])
