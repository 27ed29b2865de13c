"""What maintenance drops from the tables, without Spark."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from fruits.lake.branches import Writer, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.schemas import DATA_TABLES, TABLES, TableDefinition
from fruits.run.upkeep import Upkeep
from fruits.spark.compaction import drop_unneeded
from fruits.spark.tables import Tables
from spark_jobs import maintain

pytestmark = pytest.mark.jobs

WRITER = Writer("upkeep", "maintain_1_ab")


def row(definition: TableDefinition, **values: str) -> dict[str, Any]:
    """A row with something in every column."""

    def some(kind: pa.DataType) -> Any:
        if pa.types.is_list(kind):
            return [some(kind.value_type)]
        return "x" if pa.types.is_string(kind) else 0

    return {field.name: values.get(field.name, some(field.type)) for field in definition.schema}


def no_spark() -> Any:
    raise AssertionError("Spark was started")


@pytest.fixture
def tables(folder_lake: Any) -> Tables:
    """Each table has a row of three backbones, each under a PCA version of its own, in one file."""
    lake = Lake.open(folder_lake)
    for definition in TABLES[:-1]:
        rows = [row(definition, model_id=f"m{number}", pca_id=f"p{number}") for number in range(3)]
        lake.table(definition.name).append(pa.Table.from_pylist(rows, schema=definition.schema))
        head = lake.head(definition.name)
        assert head is not None
        start_branch(lake, definition.name, WRITER.branch, head)
    return Tables(no_spark, lake, WRITER)


def left(tables: Tables, column: str) -> dict[str, set[str]]:
    """The values of a column on the branch, by table."""
    found = {name: tables.lake.read(name, tables.lake.head(name, WRITER.branch)) for name in DATA_TABLES}
    return {name: set(rows[column].to_pylist()) for name, rows in found.items() if column in rows.column_names}


def upkeep(**dropped: tuple[str, ...]) -> Upkeep:
    """Maintenance with something to drop."""
    nothing: dict[str, Any] = {"expired_versions": (), "retired_backbones": ()}
    return Upkeep((), (), {}, {}, old_folders=(), **{**nothing, **dropped})


def test_a_retired_backbone_leaves_every_table(tables: Tables) -> None:
    drop_unneeded(tables, upkeep(retired_backbones=("m1",)))
    assert left(tables, "model_id") == {name: {"m0", "m2"} for name in DATA_TABLES}


def test_a_version_leaves_the_tables_of_versions_alone(tables: Tables) -> None:
    drop_unneeded(tables, upkeep(expired_versions=("p1",)))
    assert left(tables, "pca_id") == {name: {"p0", "p2"} for name in ("pca_models", "embeddings")}
    others = {*DATA_TABLES} - {"pca_models", "embeddings"}
    assert {name for name, models in left(tables, "model_id").items() if len(models) == 3} == others


@pytest.mark.parametrize(
    ("unneeded", "changed"),
    [({"expired_versions": ("p0",)}, {"embeddings", "pca_models"}), ({"retired_backbones": ("m0",)}, set(DATA_TABLES))],
)
def test_each_table_that_lost_files_loses_the_deletes_of_these_files_too(
    tables: Tables, monkeypatch: pytest.MonkeyPatch, unneeded: dict[str, Any], changed: set[str]
) -> None:
    cleaned: set[str] = set()
    monkeypatch.setattr(maintain, "drop_dangling_deletes", lambda _, name: cleaned.add(name))
    planned = SimpleNamespace(request=SimpleNamespace(rewrite_all=False))
    job: Any = SimpleNamespace(tables=tables, lake=tables.lake, planned=planned, phase=lambda _: nullcontext())
    base: Any = SimpleNamespace(snapshots={table.name: tables.lake.head(table.name) for table in TABLES})
    upkeep: Any = SimpleNamespace(**{"expired_versions": (), "retired_backbones": (), "to_compact": (), **unneeded})
    maintain.compact(job, base, upkeep)
    assert cleaned == changed
