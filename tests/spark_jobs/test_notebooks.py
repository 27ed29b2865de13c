"""The notebooks of docs/notebooks, run as they stand against tables that a run published."""

import io
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fruits.lake.catalog import Lake
from fruits.lake.classifier_tables import load_classifier
from fruits.lake.reader import current_publication
from fruits.serve.summary import describe_catalog

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"

pytestmark = [pytest.mark.jobs, pytest.mark.heavy]


@pytest.fixture(scope="module")
def published(chain, new_settings):
    """Settings of a lake with 40 photos, a copy of one and, in the other split, the same picture in other bytes."""
    photos = chain.photos(40)
    key, *_ = sorted(key for key in photos if key.startswith("Training"))
    folder = key.rpartition("/")[0]
    again = io.BytesIO()
    Image.open(io.BytesIO(photos[key])).convert("RGB").save(again, "JPEG", quality=80)
    photos |= {f"{folder}/copy.img": photos[key], f"{folder.replace('Training', 'Test')}/again.img": again.getvalue()}
    settings = new_settings()
    chain.put(settings, photos)
    chain.run(settings, "manual__2026-11-22T09:30:00+00:00")
    return settings


@pytest.fixture
def run_notebook(published, tmp_path, monkeypatch):
    """Runs a notebook in a folder with `catalog.json`; gives what it printed last, and the types of its outputs."""
    import nbformat
    from nbclient import NotebookClient

    (tmp_path / "catalog.json").write_text(json.dumps(describe_catalog(published)))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def run(name):
        notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        shown = {kind for output in outputs for kind in output.get("data", ())}
        return json.loads(outputs[-1]["text"]), shown

    return run


def test_a_classifier_is_trained_from_the_published_embeddings(run_notebook, published):
    result, shown = run_notebook("train.ipynb")
    lake = Lake.open(published)
    publication = current_publication(lake)
    rows = lake.read("features", publication.snapshots["features"], ("split",))["split"].to_pylist()
    assert result["publication_id"] == publication.publication_id
    assert (result["fitted"], result["held_out"]) == (rows.count("train"), rows.count("test"))
    assert result["accuracy"] >= 0.7
    assert {"image/png", "text/html"} <= shown


def test_confusions_and_near_duplicates_are_those_of_the_tables(run_notebook, published):
    result, shown = run_notebook("confusions.ipynb")
    lake = Lake.open(published)
    publication = current_publication(lake)
    rows = lake.read("features", publication.snapshots["features"]).to_pylist()
    held_out = [row for row in rows if row["split"] != "train"]
    classifier = load_classifier(lake, publication)
    likeliest = classifier.probabilities(np.array([row["vector"] for row in held_out])).argmax(axis=1)
    wrong = sum(classifier.labels[place] != row["label"] for place, row in zip(likeliest, held_out, strict=True))
    near = [
        (one, other)
        for one, other in combinations(rows, 2)
        if ((one["phash"] ^ other["phash"]) & (2**64 - 1)).bit_count() <= 3
    ]
    assert result == {
        "publication_id": publication.publication_id,
        "held_out": len(held_out),
        "wrong": wrong,
        "near_duplicates": len(near),
        "same_bytes": sum(one["sha256"] == other["sha256"] for one, other in near),
        "across_splits": sum(one["split"] != other["split"] for one, other in near),
    }
    assert result["same_bytes"] >= 1
    assert result["across_splits"] >= 1
    assert {"image/png", "text/html"} <= shown
