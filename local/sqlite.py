"""How the embedded stack's Airflow connects to its SQLite: writers wait for each other, savepoints included.

SQLite has one writer at a time; other writers wait, up to ``timeout``. But SQLite refuses a transaction at once
("database is locked") when it has read, another connection has written since, and it then writes: its reads are out of
date. Python's driver avoids that: it begins a transaction only at the first write. ``SAVEPOINT`` is the exception: it
begins a transaction that may read first. Airflow creates a backfill's runs in a loop, a savepoint for each day, and
failed half way beside active runs.
"""

import sqlite3
from typing import Any


class WaitingCursor(sqlite3.Cursor):
    """Takes the lock for writing before a savepoint that would begin a transaction."""

    def execute(self, sql: str, parameters: Any = (), /) -> "WaitingCursor":
        """Run a statement, see ``sqlite3.Cursor.execute``."""
        if sql.startswith("SAVEPOINT") and not self.connection.in_transaction:
            super().execute("BEGIN IMMEDIATE")
        super().execute(sql, parameters)
        return self


class WaitingConnection(sqlite3.Connection):
    """A connection whose cursors are ``WaitingCursor``."""

    def cursor(self, factory: Any = WaitingCursor) -> Any:
        """A new cursor, see ``sqlite3.Connection.cursor``."""
        return super().cursor(factory)


CONNECT_ARGS: dict[str, Any] = {"factory": WaitingConnection, "timeout": 60}
"""For ``AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS``; seconds."""
