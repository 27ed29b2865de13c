"""Questions in SQL about rows: one text, whether the driver holds the rows or Spark has them."""

from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from fruits.spark.tables import Tables

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Relation: TypeAlias = "DataFrame | pa.Table"
"""Rows that Spark has, or rows that the driver has read itself."""


def answer(tables: Tables, question: str, *values: str, **rows: Relation) -> list[dict[str, Any]]:
    """The few rows that answer a question, as values by column.

    The tables of the question are ``rows`` by name, and its question marks stand for ``values``. DuckDB answers where
    all rows are at hand, else Spark: so the question is to be in the SQL that both know.
    """
    if all(isinstance(some, pa.Table) for some in rows.values()):
        return _answer_here(question, values, rows)

    def frame(some: Relation) -> "DataFrame":
        return tables.spark.createDataFrame(some) if isinstance(some, pa.Table) else some

    for name, some in rows.items():
        frame(some).createOrReplaceTempView(name)
    return [row.asDict() for row in tables.spark.sql(question, args=list(values)).collect()]


def _answer_here(question: str, values: tuple[str, ...], rows: dict[str, Relation]) -> list[dict[str, Any]]:
    import duckdb

    with duckdb.connect(config={"threads": 1}) as connection:
        for name, some in rows.items():
            connection.register(name, some)
        found: list[dict[str, Any]] = connection.sql(question, params=list(values)).to_arrow_table().to_pylist()
    return found
