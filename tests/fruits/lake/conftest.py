"""A lake in a folder of its own; it needs no S3 server."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fruits.lake.catalog import Lake
from fruits.settings import Settings


@pytest.fixture
def lake_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Settings of a lake in ``tmp_path``, whatever the environment says."""

    def make(**overrides: object) -> Settings:
        values = {"lake": f"file://{tmp_path}/lake", "catalog_uri": f"sqlite:///{tmp_path}/catalog.db", **overrides}
        return Settings.load(**values)

    for name in Settings.model_fields:
        monkeypatch.delenv(f"FRUITS_{name.upper()}", raising=False)
    return make


@pytest.fixture
def lake(as_made: Callable[..., Settings]) -> Lake:
    """An open lake with empty tables, as if just made."""
    return Lake.open(as_made(Lake.open))
