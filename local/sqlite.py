"""How the embedded stack's Airflow connects to its SQLite: writers wait for each other, savepoints included.

SQLite has one writer at a time; others wait for it, up to ``timeout``. But a transaction that has read already and then
writes is refused at once when another writer was faster ("database is locked"): its reads are out of date. Python's
driver avoids that by beginning a transaction only at its first write, except for ``SAVEPOINT``, which begins one that
may read first. So Airflow's loop over the days of a backfill, a savepoint for each, failed half way beside active runs.
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
