"""A lake in a folder of its own; it needs no S3 server."""

import shutil
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


@pytest.fixture(scope="session")
def empty_lake(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder, and what it holds when a lake with empty tables has just been made in it.

    The files of a lake name their own folder, so a copy of them is a lake only in that folder.
    """
    folder = tmp_path_factory.mktemp("lake")
    original = tmp_path_factory.mktemp("original") / "lake"
    Lake.open(Settings.load(lake=f"file://{folder}/lake", catalog_uri=f"sqlite:///{folder}/catalog.db"))
    shutil.copytree(folder, original)
    return folder, original


@pytest.fixture
def lake(empty_lake: tuple[Path, Path], lake_settings: Callable[..., Settings]) -> Lake:
    """An open lake with empty tables, as if just made; tests of a session have it one after another."""
    folder, original = empty_lake
    shutil.rmtree(folder)
    shutil.copytree(original, folder)
    return Lake.open(lake_settings(lake=f"file://{folder}/lake", catalog_uri=f"sqlite:///{folder}/catalog.db"))
