"""What is written for the storage: records, the schedule, claims, and what has expired."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Self

from psq.group_commit import Done
from psq.sqlite.opening import STORAGE
from psq.sqlite.statements import insert
from psq.sqlite.work import Outbox, Transaction, Work
from psq.storages.base import TERMINAL, Scheduled, TaskRecord

__all__ = ["COLUMNS", "Put", "Release", "Schedule", "Sweep", "TakeClaim", "record_of"]

COLUMNS = (
    "id, state, queue, function, attempt, run, enqueued_at, started_at, finished_at, result, error, worker, expires_at"
)
_TERMINAL = ", ".join(f"'{state}'" for state in sorted(TERMINAL))
# Terminal states stay: only a later attempt or run replaces one, or anything once it has expired.
_REPLACE = (
    "ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in [*COLUMNS.split(", ")[1:], "at"])
    + f" WHERE task.state NOT IN ({_TERMINAL}) OR (excluded.run, excluded.attempt) > (task.run, task.attempt)"
    + " OR task.expires_at <= (julianday('now') - 2440587.5) * 86400"
)
#: Rows that one sweep deletes at a time: the lock is not held longer.
SWEEP_ROWS = 1000


class Put(Work):
    """A record, unless a terminal one of the same or a later attempt is there."""

    __slots__ = ("bytes", "count", "record")
    order = 25

    def __init__(self, record: TaskRecord, size: int, count: Callable[[int], None], done: Done, outbox: Outbox) -> None:
        super().__init__(done, STORAGE, outbox)
        self.record, self.bytes, self.count = record, size, count
        count(size)

    def complete(self, result: Any, error: Exception | None) -> None:
        """Count its bytes as written, too."""
        over = self.over
        super().complete(result, error)
        if self.over and not over:
            self.count(-self.bytes)

    def weight(self) -> int:
        """The result and what goes with it."""
        return self.bytes

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> None:
        """Insert or replace all."""
        insert(tx.connection, f"INSERT INTO task ({COLUMNS}, at)", [_row(work.record) for work in works], _REPLACE)


def _row(one: TaskRecord) -> tuple[Any, ...]:
    return (
        *(one.id, one.state, one.queue, one.function, one.attempt, one.run, one.enqueued_at, one.started_at),
        *(one.finished_at, one.result, None if one.error is None else json.dumps(one.error), one.worker),
        *(one.expires_at, one.finished_at or one.started_at or one.enqueued_at),
    )


def record_of(row: Sequence[Any]) -> TaskRecord:
    """The record of a row with `COLUMNS`."""
    record = TaskRecord(*row)
    error: Any = record.error
    if error is not None:
        record.error = json.loads(error)
    return record


class Schedule(Work):
    """A message that waits for its time; the same key twice is kept once."""

    __slots__ = ("item", "key")
    order = 26

    def __init__(self, item: Scheduled, key: str, done: Done, outbox: Outbox) -> None:
        super().__init__(done, STORAGE, outbox)
        self.item, self.key = item, key

    def weight(self) -> int:
        """The document and what goes with it."""
        return len(self.item.data) + 300

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> None:
        """Insert all."""
        rows = [
            (
                *(work.key, work.item.id, work.item.due_at, work.item.queue),
                *(work.item.data, json.dumps(dict(work.item.attributes))),
            )
            for work in works
        ]
        insert(tx.connection, "INSERT OR IGNORE INTO scheduled (key, id, due_at, queue, data, attributes)", rows)


class TakeClaim(Work):
    """A claim, taken or prolonged; its result tells whether it is ours."""

    __slots__ = ("key", "owner", "seconds")
    order = 27

    def __init__(self, key: str, owner: str, seconds: float, done: Done) -> None:
        super().__init__(done, STORAGE)
        self.key, self.owner, self.seconds = key, owner, seconds

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> Sequence[bool]:
        """Take those that are free, over or ours."""
        return [
            tx.connection.execute(
                "INSERT INTO claim (key, owner, until) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE"
                " SET owner = excluded.owner, until = excluded.until WHERE owner = excluded.owner OR until <= ?",
                (work.key, work.owner, tx.now + work.seconds, tx.now),
            ).rowcount
            > 0
            for work in works
        ]


class Release(Work):
    """The end of a claim, if it is its owner's."""

    __slots__ = ("key", "owner")
    order = 28

    def __init__(self, key: str, owner: str, done: Done) -> None:
        super().__init__(done, STORAGE)
        self.key, self.owner = key, owner

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> None:
        """Let go of them."""
        for work in works:
            tx.connection.execute("DELETE FROM claim WHERE key = ? AND owner = ?", (work.key, work.owner))


class Sweep(Work):
    """Some of what has expired; its result is how many."""

    __slots__ = ("before",)
    order = 60

    def __init__(self, before: float, done: Done) -> None:
        super().__init__(done, STORAGE)
        self.before = before

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> Sequence[int]:
        """Delete the oldest."""
        results = []
        for work in works:
            results.append(
                tx.connection.execute(
                    "DELETE FROM task WHERE rowid IN (SELECT rowid FROM task WHERE expires_at <= ?"
                    " ORDER BY expires_at LIMIT ?)",
                    (work.before, SWEEP_ROWS),
                ).rowcount
            )
            tx.connection.execute("DELETE FROM claim WHERE until <= ?", (work.before,))
        return results
