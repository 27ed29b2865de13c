"""A catalog that is old or lost is made again from the lake's files."""

import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.catalog.sql import SqlCatalogBaseTable
from sqlalchemy import create_engine, insert, select

from fruits.errors import FruitsError
from fruits.lake import catalog as catalog_module
from fruits.lake import publication as publication_module
from fruits.lake.catalog import Lake, catalog_properties
from fruits.lake.publication import publications
from fruits.lake.reader import NoLakeError, open_read_only
from fruits.lake.rebuild import check_catalog_is_current, plan_rebuild, rebuild
from fruits.lake.schemas import DATA_TABLES, TABLES
from fruits.run.request import MaintenanceRequest
from fruits.settings import Settings
from fruits.steps.plan_maintenance import plan_maintenance
from fruits.stores import effects_watched
from tests.fruits.lake.test_publication import keys, publish_run

NAMES = [definition.name for definition in TABLES]


@dataclass
class History:
    """A lake with many publications, and a dump of its catalog after each: ``<sequence>.db``."""

    folder: Path
    publications: int

    @property
    def settings(self) -> Settings:
        return Settings.load(lake=f"file://{self.folder}/lake", catalog_uri=f"sqlite:///{self.folder}/catalog.db")

    @property
    def database(self) -> Path:
        return self.folder / "catalog.db"

    def dump(self, sequence: int) -> None:
        shutil.copy(self.database, self.folder / f"{sequence}.db")

    def restore(self, age: int) -> Lake:
        """The lake with the catalog of so many publications ago."""
        self.lose()
        shutil.copy(self.folder / f"{self.publications - age}.db", self.database)
        return Lake(self.settings)

    def lose(self) -> None:
        self.database.unlink(missing_ok=True)

    def metadata(self, name: str) -> list[Path]:
        return sorted((self.folder / "lake" / "tables" / "fruits" / name / "metadata").glob("*.metadata.json"))


def make_history(folder: Path, publications: int) -> History:
    """Publish, and dump the catalog after each publication; versions past the tables' log are deleted."""
    folder.mkdir(exist_ok=True)
    history = History(folder, publications)
    lake = Lake.open(history.settings)
    for sequence in range(1, publications + 1):
        publish_run(lake, f"run-{sequence}")
        history.dump(sequence)
    delete_old_versions(lake)
    return history


def delete_old_versions(lake: Lake) -> None:
    """Delete each metadata file that no table's log has any more: Spark does so with each of its commits."""
    for name in NAMES:
        table = lake.table(name)
        kept = {table.metadata_location, *(entry.metadata_file for entry in table.metadata.metadata_log)}
        for file in Path(table.location().removeprefix("file://"), "metadata").glob("*.metadata.json"):
            if f"file://{file}" not in kept:
                file.unlink()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[History, Path]:
    """A short history with a short log of versions, and a copy of its folder."""
    folder = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalog_module._TABLE_PROPERTIES, "write.metadata.previous-versions-max", "10")
        history = make_history(folder / "lake", 8)
    copy = folder / "copy"
    shutil.copytree(history.folder, copy)
    return history, copy


@pytest.fixture
def history(original: tuple[History, Path]) -> History:
    """The short history as it was made."""
    history, copy = original
    shutil.rmtree(history.folder)
    shutil.copytree(copy, history.folder)
    return history


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FRUITS_{name.upper()}", raising=False)


def rebuilt(settings: Settings) -> Lake:
    rebuild(settings, plan_rebuild(settings))
    return Lake(settings)


def check_newest_is_read(lake: Lake, newest: int) -> None:
    published = publications(lake)
    assert [one.sequence for one in published] == list(range(1, newest + 1))
    assert {name: lake.head(name) for name in DATA_TABLES} == published[-1].snapshots
    expected = sorted(f"run-{number}.jpg" for number in range(1, newest + 1))
    for name in ("features", "embeddings"):
        assert keys(lake, name, published[-1].snapshots[name]) == expected


def actions(settings: Settings) -> dict[str, str]:
    return {table.name: table.action for table in plan_rebuild(settings).tables}


def registered(history: History) -> dict[str, str]:
    with sqlite3.connect(history.database) as database:
        return dict(database.execute("SELECT table_name, metadata_location FROM iceberg_tables"))


class TestBackups:
    @pytest.mark.parametrize("age", [1, 7])
    def test_a_backup_of_any_age_is_brought_to_the_newest_publication(self, history, age):
        history.restore(age)
        lake = rebuilt(history.settings)
        check_newest_is_read(lake, 8)
        check_catalog_is_current(lake)
        publish_run(lake, "run-9")
        check_newest_is_read(lake, 9)

    def test_the_backups_of_this_history_name_files_that_are_there_and_files_that_are_gone(self, history):
        history.restore(1)
        assert {table.registered_exists for table in plan_rebuild(history.settings).tables} == {True}
        history.restore(7)
        assert not all(table.registered_exists for table in plan_rebuild(history.settings).tables)

    def test_a_lost_catalog_is_made_again(self, history):
        history.lose()
        assert set(actions(history.settings).values()) == {"register"}
        lake = rebuilt(history.settings)
        check_newest_is_read(lake, 8)
        publish_run(Lake.open(history.settings), "run-9")
        check_newest_is_read(lake, 9)

    def test_a_catalog_that_is_right_stays_as_it_is(self, history):
        before = registered(history)
        assert set(actions(history.settings).values()) == {"keep"}
        rebuilt(history.settings)
        assert registered(history) == before

    def test_a_comparison_changes_nothing(self, history):
        history.restore(7)
        before = registered(history)
        plan_rebuild(history.settings)
        assert registered(history) == before
        history.lose()
        plan_rebuild(history.settings)
        assert not history.database.exists()


class TestMessages:
    def test_an_old_backup_names_the_command(self, history):
        history.restore(7)
        for opens in (Lake.open, open_read_only):
            with pytest.raises(FruitsError, match=r"table \w+: .*metadata.json.*`fruits catalog rebuild`"):
                opens(history.settings)

    def test_a_lost_catalog_names_the_command(self, history):
        history.lose()
        for opens in (open_read_only, Lake.open):
            with pytest.raises(FruitsError, match="`fruits catalog rebuild`"):
                opens(history.settings)

    def test_a_backup_whose_files_are_there_stops_a_run(self, history):
        lake = history.restore(1)
        with pytest.raises(FruitsError, match=r"the catalog is older than the lake.*`fruits catalog rebuild`"):
            check_catalog_is_current(lake)
        with pytest.raises(FruitsError, match="the catalog is older than the lake"):
            plan_maintenance(history.settings, MaintenanceRequest(retention_days=30, retention_publications=2), "m")

    def test_the_file_of_a_commit_that_was_lost_stops_no_run(self, history):
        lake = Lake.open(history.settings)
        newest = history.metadata("publications")[-1]
        number = int(newest.name[:5])
        for version in (number, number + 1):
            shutil.copy(newest, newest.with_name(f"{version:05d}-00000000-0000-4000-8000-000000000000.metadata.json"))
        check_catalog_is_current(lake)


class TestRefusals:
    def refuse(self, settings: Settings, match: str) -> None:
        with pytest.raises(FruitsError, match=match):
            plan_rebuild(settings)

    def test_runs_on_an_old_catalog_are_not_taken_back(self, history):
        lake = history.restore(2)
        publish_run(lake, "another")
        before = registered(history)
        self.refuse(history.settings, r"table \w+: .*two lines of versions")
        assert registered(history) == before
        check_catalog_is_current(lake)

    def test_a_catalog_that_is_newer_than_the_files(self, history):
        for file in history.metadata("features")[-3:]:
            file.unlink()
        self.refuse(history.settings, r"table features: the catalog is newer than the lake's files")

    def test_a_snapshot_that_readers_need_is_not_in_the_lake(self, history):
        history.lose()
        for file in history.metadata("features")[-4:]:
            file.unlink()
        self.refuse(history.settings, r"table features: publication pub-000008-\w+ needs snapshot \d+")

    def test_a_list_of_files_that_readers_need_is_not_in_the_lake(self, history):
        lake = Lake(history.settings)
        current = lake.table("embeddings").snapshot_by_name("main")
        Path(current.manifest_list.removeprefix("file://")).unlink()
        self.refuse(history.settings, r"table embeddings: publication .* files of the lake are lost")

    def test_a_place_without_a_lake(self, history, tmp_path):
        nowhere = {"lake": f"file://{tmp_path}/nowhere", "catalog_uri": f"sqlite:///{tmp_path}/catalog.db"}
        with pytest.raises(NoLakeError, match="does not exist"):
            plan_rebuild(Settings.load(**nowhere))
        assert list(tmp_path.iterdir()) == []
        self.refuse(history.settings.model_copy(update={"namespace": "other"}), "no metadata file of the table publi")

    def test_the_tables_of_another_lake(self, history, tmp_path):
        Lake.open(Settings.load(lake=f"file://{tmp_path}/lake", catalog_uri=f"sqlite:///{tmp_path}/catalog.db"))
        settings = history.settings
        self.refuse(
            Settings.load(lake=settings.lake, catalog_uri=f"sqlite:///{tmp_path}/catalog.db"),
            r"the catalog names .*; set FRUITS_LAKE",
        )

    def test_another_name_of_the_catalog(self, history):
        settings = history.settings.model_copy(update={"catalog_name": "other"})
        self.refuse(settings, "set FRUITS_CATALOG_NAME=fruits")

    def test_a_newer_release(self, history):
        Lake(history.settings).set_properties({"fruits.lake-format": "99"})
        history.lose()
        self.refuse(history.settings, "has format 99")

    def test_glue(self, tmp_path):
        (tmp_path / "lake").mkdir()
        settings = Settings.load(lake="s3://bucket/lake", catalog_uri="glue://")
        self.refuse(settings, r"Glue keeps the tables .*register_table")


class TestOneTransaction:
    def test_a_catalog_that_changed_since_the_comparison_is_left_alone(self, history):
        history.restore(7)
        planned = plan_rebuild(history.settings)
        with sqlite3.connect(history.database) as database:
            database.execute("UPDATE iceberg_tables SET metadata_location = 'x' WHERE table_name = 'publications'")
        before = registered(history)
        with pytest.raises(FruitsError, match="another process changed the catalog"):
            rebuild(history.settings, planned)
        assert registered(history) == before

    def test_a_crash_before_the_commit_leaves_the_catalog_as_it_was(self, history):
        history.restore(7)
        before = registered(history)

        def crash(kind: str, path: str, moment: str) -> None:
            if (kind, path, moment) == ("commit", "catalog", "before"):
                raise KeyboardInterrupt

        with effects_watched(crash), pytest.raises(KeyboardInterrupt):
            rebuild(history.settings, plan_rebuild(history.settings))
        assert registered(history) == before
        check_newest_is_read(rebuilt(history.settings), 8)


Dump = Mapping[str, Sequence[Mapping[str, Any]]]


class CatalogDatabase:
    """The catalog's database, SQLite or PostgreSQL; a dump of it has the rows of each of its tables."""

    def __init__(self, settings: Settings) -> None:
        self._engine = create_engine(catalog_properties(settings)["uri"])
        self._schema = SqlCatalogBaseTable.metadata

    def dump(self) -> Dump:
        tables = self._schema.sorted_tables
        with self._engine.connect() as connection:
            return {table.name: connection.execute(select(table)).mappings().all() for table in tables}

    def restore(self, dump: Dump) -> None:
        self.lose()
        self._schema.create_all(self._engine)
        with self._engine.begin() as connection:
            for table in self._schema.sorted_tables:
                connection.execute(insert(table), [dict(row) for row in dump[table.name]])

    def lose(self) -> None:
        self._schema.drop_all(self._engine)

    def registered(self) -> Mapping[str, str]:
        return {row["table_name"]: row["metadata_location"] for row in self.dump()["iceberg_tables"]}


def expire_snapshots(lake: Lake) -> None:
    """Keep the first snapshot of each table and the newest five, as maintenance does in the course of time."""
    for name in NAMES:
        snapshots = sorted(lake.table(name).snapshots(), key=lambda snapshot: snapshot.sequence_number)
        if expired := [snapshot.snapshot_id for snapshot in snapshots[1:-5]]:
            lake.table(name).maintenance.expire_snapshots().by_ids(expired).commit()


def drill(settings: Settings, count: int) -> int:
    """Publish so often, rebuild from a dump of each age and from nothing; returns how many dumps named lost files."""
    lake, database, dumps, gone = Lake.open(settings), CatalogDatabase(settings), [], 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publication_module, "_MOST_FILES", 5)  # of publications, which are read often: each costs an open
        for sequence in range(1, count + 1):
            publish_run(lake, f"run-{sequence}")
            dumps.append(database.dump())
            if sequence % 20 == 0:
                expire_snapshots(lake)
    delete_old_versions(lake)
    newest = database.registered()
    for dump in (*dumps, None):
        database.lose() if dump is None else database.restore(dump)
        planned = plan_rebuild(settings)
        gone += not all(table.registered_exists or table.registered is None for table in planned.tables)
        rebuild(settings, planned)
        assert database.registered() == newest
    check_newest_is_read(Lake(settings), count)
    publish_run(Lake.open(settings), f"run-{count + 1}")
    check_newest_is_read(Lake(settings), count + 1)
    return gone


@pytest.mark.slow
def test_backups_of_all_ages_are_brought_to_the_newest_publication(lake_settings):
    assert 150 < drill(lake_settings(), 200) < 190, "most name files that are gone, some do not"
