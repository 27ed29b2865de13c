"""The examples of docs/data.md, run as they stand against tables that a run published."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_example_runs_and_shows_the_published_photos(
    published_summary: dict[str, object], tmp_path: Path
) -> None:
    examples = BLOCK.findall((ROOT / "docs" / "data.md").read_text())
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "summary.json").write_text(json.dumps(published_summary))
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
    photos = published_summary["features"]
    assert len(examples) == 6
    assert f"{photos} photos with embeddings of length {published_summary['pca']['k']}" in done.stdout
    assert "not_an_image" in done.stdout  # DuckDB over the quarantine
    assert re.search(r"\+-+\+-+\+", done.stdout), "Spark shows a table"
