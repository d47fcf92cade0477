"""Reading a psq file in the caller's own thread or greenlet."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any

from psq.concurrency import original
from psq.sqlite.opening import Kinds, inode, is_locked, reader, translate
from psq.sqlite.schema import NotOurs, is_ours

__all__ = ["Reader"]

#: Seconds that a reader waits while the file is locked as a whole (it is being recovered, or made).
READ_TIMEOUT = 5.0

Row = tuple[Any, ...]


class Reader:
    """One connection, for one query at a time. Safe from any thread and greenlet.

    Args:
        path: Of the file.
        ready: Waits until the file is there, with our tables.

    Attributes:
        gate: Held while somebody is inside SQLite.
    """

    def __init__(self, path: str, ready: Callable[[Kinds], None]) -> None:
        self._path, self._ready = path, ready
        self.gate: Any = original("_thread", "allocate_lock")()
        self._connection: sqlite3.Connection | None = None
        self._inode = (0, 0)

    def read(self, sql: str, parameters: Sequence[Any], kinds: Kinds) -> list[Row]:
        """All rows of a query. No transaction stays open behind it, so the write-ahead log can be emptied.

        Raises:
            PsqError: As `kinds` say.
        """
        deadline = time.monotonic() + READ_TIMEOUT
        while True:
            try:
                with self.gate:
                    if self._is_ready():
                        assert self._connection is not None
                        return self._connection.execute(sql, parameters).fetchall()
            except (sqlite3.Error, NotOurs) as error:
                if not is_locked(error) or time.monotonic() >= deadline:
                    raise translate(error, kinds, self._path) from error
                time.sleep(0.005)  # gevent's own, once patched
                continue
            self._ready(kinds)

    def _is_ready(self) -> bool:
        """Open it, if it is there with our tables: a reader need not wait for the writer, who may wait for a lock."""
        now = inode(self._path)
        if now != self._inode:  # not opened yet, removed or replaced
            self.close_file()
            self._inode = (0, 0)
        if self._connection is None and now != (0, 0):
            connection = reader(self._path)
            try:
                if is_ours(connection):
                    self._connection, self._inode = connection, now
            finally:
                if self._connection is None:
                    connection.close()
        return self._connection is not None

    def close_file(self) -> None:
        """Close it; the next read opens it again. With the gate held."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def connection(self) -> sqlite3.Connection | None:
        """While the file is open."""
        return self._connection
