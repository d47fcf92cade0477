"""Many rows in few statements: each call into SQLite may cost the writer its turn."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from psq.sqlite.schema import LEASE_BITS

__all__ = ["insert", "json_numbers", "json_texts", "split_key", "token"]

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


def json_numbers(values: Iterable[int]) -> str:
    """For ``IN (SELECT value FROM json_each(?))``."""
    return f"[{','.join(map(str, values))}]"


def json_texts(values: Iterable[str]) -> str:
    """As `json_numbers`, for text."""
    import json

    return json.dumps(list(values))


def split_key(lease_key: str) -> tuple[int, int]:
    """Number and lease of ``seq:lease``.

    Raises:
        ValueError: Not a lease key of ours.
    """
    seq, _, lease = lease_key.partition(":")
    return int(seq), int(lease)


def token(seq: int, lease: int) -> int:
    """Both in one number, as the statements compare them."""
    return seq << LEASE_BITS | lease & (1 << LEASE_BITS) - 1
