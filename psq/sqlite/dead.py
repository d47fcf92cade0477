"""Dead letters in a psq file: the broker's own place, and the storage's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Self

from psq.brokers.base import DeadLetter, DeadLetters
from psq.group_commit import Done
from psq.sqlite.database import Handle
from psq.sqlite.opening import Kinds
from psq.sqlite.statements import insert, json_texts
from psq.sqlite.work import Outbox, Transaction, Work

__all__ = ["Delete", "FileDeadLetters"]

_COLUMNS = "key, id, attempt, queue, function, reason, payload, error, traceback, enqueued_at, died_at, deaths"
#: Rows of a listing that are read at a time: no reader stays open between them.
PAGE = 200


class _PutDead(Work):
    __slots__ = ("letter",)
    order = 30

    def __init__(self, letter: DeadLetter, done: Done, kinds: Kinds, outbox: Outbox) -> None:
        super().__init__(done, kinds, outbox)
        self.letter = letter

    def weight(self) -> int:
        return len(self.letter.payload) + len(self.letter.traceback) + 500

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> None:
        rows = []
        for work in works:
            one = work.letter
            rows.append(
                (
                    *(one.key, one.id, one.attempt, one.queue, one.function, one.reason, one.payload, one.error),
                    *(one.traceback, one.enqueued_at, one.died_at, json.dumps(list(one.deaths))),
                )
            )
        insert(tx.connection, f"INSERT OR REPLACE INTO dead ({_COLUMNS})", rows)


class Delete(Work):
    """Rows of one table, by a text column.

    Args:
        table: Its name.
        column: The column's name.
        values: What it is.
    """

    __slots__ = ("column", "table", "values")
    order = 40

    def __init__(self, table: str, column: str, values: Sequence[str], done: Done, kinds: Kinds) -> None:
        super().__init__(done, kinds)
        self.table, self.column, self.values = table, column, values

    def weight(self) -> int:
        """By the number of rows."""
        return 100 * len(self.values)

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> None:
        """Delete them."""
        for work in works:
            tx.connection.execute(
                f"DELETE FROM {work.table} WHERE {work.column} IN (SELECT value FROM json_each(?))",
                (json_texts(work.values),),
            )


class _Discard(Work):
    __slots__ = ("letters",)
    order = 40

    def __init__(self, letters: Sequence[DeadLetter], done: Done, kinds: Kinds) -> None:
        super().__init__(done, kinds)
        self.letters = letters

    def weight(self) -> int:
        return 100 * len(self.letters)

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> None:
        rows = [(letter.key, letter.died_at) for work in works for letter in work.letters]
        tx.connection.executemany("DELETE FROM dead WHERE key = ? AND died_at = ?", rows)


class FileDeadLetters(DeadLetters):
    """The dead letters of a file.

    Args:
        handle: Of the owner.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def put_dead(self, letter: DeadLetter, done: Done) -> None:
        """See the seam."""
        handle = self._handle
        handle.add(_PutDead(letter, done, handle.kinds, handle.outbox))

    def list_dead(self, queue: str | None = None, limit: int | None = None) -> Iterator[DeadLetter]:
        """See the seam; newest first."""
        where, parameters = ("queue = ? AND", [queue]) if queue is not None else ("", [])
        sql = (
            f"SELECT {_COLUMNS} FROM dead WHERE {where} (died_at, key) < (?, ?) ORDER BY died_at DESC, key DESC LIMIT ?"
        )
        after: tuple[float, str] = (float("inf"), "")
        left = limit if limit is not None else -1
        while left:
            size = PAGE if left < 0 else min(PAGE, left)
            rows = self._handle.read(sql, (*parameters, *after, size))
            for row in rows:
                yield _letter(row)
            if len(rows) < size:
                return
            after = (rows[-1][10], rows[-1][0])
            left -= len(rows) if left > 0 else 0

    def get_dead(self, id: str) -> list[DeadLetter]:
        """See the seam; oldest attempt first."""
        sql = f"SELECT {_COLUMNS} FROM dead WHERE key = ? OR id = ? ORDER BY attempt"
        return [_letter(row) for row in self._handle.read(sql, (id, id))]

    def delete_dead(self, keys: Sequence[str]) -> None:
        """See the seam."""
        self._handle.call(lambda done: Delete("dead", "key", keys, done, self._handle.kinds))

    def discard(self, letters: Sequence[DeadLetter]) -> None:
        """See the seam."""
        self._handle.call(lambda done: _Discard(letters, done, self._handle.kinds))


def _letter(row: Sequence[Any]) -> DeadLetter:
    return DeadLetter(
        id=row[1],
        attempt=row[2],
        queue=row[3],
        function=row[4],
        reason=row[5],
        payload=row[6],
        error=row[7],
        traceback=row[8],
        enqueued_at=row[9],
        died_at=row[10],
        deaths=json.loads(row[11]),
    )
