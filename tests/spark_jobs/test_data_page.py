"""The examples of docs/data.md, run as they stand against tables that a run published."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fruits.run.state import run_key
from fruits.serve.summary import describe_catalog, read_summary

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.jobs
def test_every_example_runs_and_shows_the_published_photos(first, tmp_path):
    summary = read_summary(first.settings, run_key(first.run_id))
    examples = BLOCK.findall((ROOT / "docs" / "data.md").read_text())
    (tmp_path / "catalog.json").write_text(json.dumps(describe_catalog(first.settings)))
    script = tmp_path / "examples.py"
    script.write_text("\n".join(examples))

    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert len(examples) == 6
    assert f"{summary['features']} photos with embeddings of length {summary['pca']['k']}" in done.stdout
    assert "not_an_image" in done.stdout  # DuckDB over the quarantine
    assert re.search(r"\+-+\+-+\+", done.stdout), "Spark shows a table"
