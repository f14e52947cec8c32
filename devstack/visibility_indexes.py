"""Which indexes the dev server's SQLite file keeps over the runs of workflows: those that somebody asks by.

Its schema has one for each attribute that a server knows and for each that a user might add, 45 in all. Each start and
each end of a run writes all of them: see docs/decisions/0029-visibility-indexes.md.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from devstack.terminal import say

_OF_ALL_RUNS = ("default_idx", "by_execution_time", "by_workflow_id", "by_workflow_type", "by_status")
_OF_OUR_ATTRIBUTES = ("by_keyword_", "by_bool_", "by_datetime_")
"""The server gives a new search attribute any column of its type that is free, so that all of these types are kept."""

_INDEXES = "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'executions_visibility' AND sql NOT NULL"
_LOCK_WAIT = 10.0


def drop_unasked_indexes(database: Path) -> None:
    """Drop the indexes by which the service does not ask. What others ask is answered without them, if more slowly.

    Where it cannot be done, as with an SQLite that is older than the schema, all are kept, and a line says so.
    """
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=_LOCK_WAIT)) as connection:
            _drop(connection)
    except sqlite3.Error as error:
        say(f"Temporal keeps the indexes that nobody asks by, and takes longer for each job: {error}")


def _drop(connection: sqlite3.Connection) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for (name,) in connection.execute(_INDEXES).fetchall():
            if name not in _OF_ALL_RUNS and not name.startswith(_OF_OUR_ATTRIBUTES):
                connection.execute(f"DROP INDEX {name}")
