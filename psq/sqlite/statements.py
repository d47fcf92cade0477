"""Many rows in few statements: each call into SQLite may cost the writer its turn."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

__all__ = ["insert", "json_texts"]

_CHUNKS = (256, 64, 16, 4, 1)
#: Parameters in one statement (SQLite takes 32,766).
_MOST_PARAMETERS = 8192


@lru_cache(maxsize=256)
def _statement(head: str, columns: int, rows: int, tail: str) -> str:
    row = "(" + ",".join("?" * columns) + ")"
    return f"{head} VALUES {','.join([row] * rows)} {tail}"


def insert(connection: sqlite3.Connection, head: str, rows: Sequence[Sequence[Any]], tail: str = "") -> None:
    """Insert rows, some hundred by statement.

    Args:
        connection: Inside a transaction.
        head: ``INSERT INTO task (id, …)``.
        rows: Values, all of the same length.
        tail: ``ON CONFLICT …``.
    """
    at, left = 0, len(rows)
    if not left:
        return
    columns = len(rows[0])
    for chunk in _CHUNKS:
        if chunk * columns > _MOST_PARAMETERS:
            continue
        while left >= chunk:
            values = [value for row in rows[at : at + chunk] for value in row]
            connection.execute(_statement(head, columns, chunk, tail), values)
            at, left = at + chunk, left - chunk


def json_texts(values: Iterable[str]) -> str:
    """For ``IN (SELECT value FROM json_each(?))``."""
    return json.dumps(list(values))
