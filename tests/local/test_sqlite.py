"""Writers to Airflow's SQLite wait for each other."""

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from local.sqlite import CONNECT_ARGS

pytestmark = pytest.mark.airflow

SECONDS = 20


@pytest.fixture
def connect(tmp_path: Path) -> Callable[..., Engine]:
    """Opens one database, which has one table and Airflow's write-ahead log."""
    with sqlite3.connect(tmp_path / "airflow.db") as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE runs (day INTEGER)")

    def open_it(**connect_args: Any) -> Engine:
        return create_engine(f"sqlite:///{tmp_path / 'airflow.db'}", connect_args=connect_args)

    return open_it


def read_then_write(connection: Connection, between: Callable[[], object]) -> None:
    """What Airflow does for each day of a backfill."""
    with connection.begin_nested():
        connection.execute(text("SELECT * FROM runs")).all()
        between()
        connection.execute(text("INSERT INTO runs VALUES (1)"))


def write(engine: Engine, day: int) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"INSERT INTO runs VALUES ({day})"))  # noqa: S608


def days(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return [row.day for row in connection.execute(text("SELECT day FROM runs"))]


def test_a_writer_waits_for_a_savepoint_that_reads_first(connect: Callable[..., Engine]) -> None:
    mine, other = connect(**CONNECT_ARGS), connect(**CONNECT_ARGS)
    writer = threading.Thread(target=write, args=(other, 2))

    def start_the_other() -> None:
        writer.start()
        writer.join(0.5)
        assert writer.is_alive()

    with mine.begin() as connection:
        read_then_write(connection, start_the_other)
    writer.join(SECONDS)
    assert not writer.is_alive()
    assert days(mine) == [1, 2]


def test_what_savepoints_wrote_is_there_as_a_whole_or_not_at_all(connect: Callable[..., Engine]) -> None:
    engine = connect(**CONNECT_ARGS)

    def fail_on_the_second_day() -> None:
        with engine.begin() as connection:
            read_then_write(connection, lambda: None)
            read_then_write(connection, lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        fail_on_the_second_day()
    assert days(engine) == []


def test_the_driver_alone_would_refuse_it(connect: Callable[..., Engine]) -> None:
    """Why there is this module at all; when this fails, remove it."""
    mine, other = connect(timeout=SECONDS), connect(timeout=SECONDS)
    with pytest.raises(Exception, match="database is locked"), mine.begin() as connection:
        read_then_write(connection, lambda: write(other, 2))
