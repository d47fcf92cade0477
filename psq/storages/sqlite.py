"""A storage in one SQLite file; the broker's own, by default, with the same writer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from psq.brokers.base import DeadLetter
from psq.concurrency import original
from psq.errors import StorageRefused
from psq.group_commit import Done
from psq.sqlite.database import Handle
from psq.sqlite.dead import Delete, FileDeadLetters
from psq.sqlite.location import check_path, check_synchronous, parse_url, url_of
from psq.sqlite.opening import STORAGE
from psq.sqlite.records import COLUMNS, SWEEP_ROWS, Put, Release, Schedule, Sweep, TakeClaim, record_of
from psq.sqlite.statements import json_texts
from psq.storages.base import Scheduled, Storage, TaskRecord

__all__ = ["SQLiteStorage", "from_url"]

#: Most bytes of a result with its error; the same as Datastore's, so that a program can move there.
DEFAULT_MAX_RESULT_BYTES = 32_000_000
#: Rows of a listing that are read at a time: no reader stays open between them.
PAGE = 200
#: What has expired is not there any more, swept or not.
_LIVE = "ifnull(expires_at, 1e300) > ?"


def from_url(url: str) -> SQLiteStorage:
    """Make a storage from ``sqlite:///PATH[?synchronous=normal]``; without a path it is the default one.

    Raises:
        ConfigError: The URL is wrong.
    """
    path, synchronous = parse_url(url)
    return SQLiteStorage(path, synchronous=synchronous)


class SQLiteStorage(Storage):
    """Records, dead letters, the schedule and claims in one file.

    Args:
        path: Absolute path; made with its folders where it is not there.
        synchronous: As the broker's; where both use one file, whoever opens it first decides.
        max_result_bytes: Most bytes of a result with its error.

    Raises:
        ConfigError: The path is relative, a folder, or on a network file system.
    """

    scheme: ClassVar[str] = "sqlite"
    #: One file has one place for what is scheduled.
    shards: ClassVar[int] = 1

    def __init__(
        self, path: str, *, synchronous: str = "FULL", max_result_bytes: int = DEFAULT_MAX_RESULT_BYTES
    ) -> None:
        self.path, self._synchronous = check_path(path), check_synchronous(synchronous)
        self.max_result_bytes = max_result_bytes
        self._handle = Handle(self.path, self._synchronous, self, STORAGE)
        self._dead = FileDeadLetters(self._handle)
        self._pending = 0
        self._lock: Any = original("_thread", "allocate_lock")()

    @property
    def url(self) -> str:
        """As the seam says."""
        return url_of(self.path, self._synchronous)

    @property
    def identity(self) -> str:
        """The file."""
        return f"sqlite:{self.path}"

    # records

    def put(self, record: TaskRecord, done: Done) -> None:
        """As the seam says."""
        size = 300 + len(record.result or b"") + len(record.worker) + len(record.function)
        if record.error is not None:
            size += sum(len(str(value)) for value in record.error.values())
        if size > self.max_result_bytes:
            text = f"the record of task {record.id} has {size:,} bytes; at most {self.max_result_bytes:,} are possible"
            self._handle.fail(done, StorageRefused(text))
            return
        self._handle.add(Put(record, size, self._count, done, self._handle.outbox))

    def _count(self, size: int) -> None:
        with self._lock:
            self._pending += size

    def get(self, ids: Sequence[str]) -> dict[str, TaskRecord]:
        """As the seam says."""
        sql = f"SELECT {COLUMNS} FROM task WHERE id IN (SELECT value FROM json_each(?)) AND {_LIVE}"
        return {row[0]: record_of(row) for row in self._handle.read(sql, (json_texts(ids), time.time()))}

    def find(
        self,
        *,
        state: str | None = None,
        queue: str | None = None,
        function: str | None = None,
        limit: int | None = None,
    ) -> Iterator[TaskRecord]:
        """As the seam says: newest by when they ended, else started, else were enqueued."""
        filters = {"state": state, "queue": queue, "function": function}
        given = {name: value for name, value in filters.items() if value is not None}
        where = "".join(f"{name} = ? AND " for name in given) + _LIVE
        sql = f"SELECT {COLUMNS}, at FROM task WHERE {where} AND (at, id) < (?, ?) ORDER BY at DESC, id DESC LIMIT ?"
        after: tuple[float, str] = (float("inf"), "")
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            rows = self._handle.read(sql, (*given.values(), time.time(), *after, size))
            for row in rows:
                yield record_of(row[:-1])
            if len(rows) < size:
                return
            after = (rows[-1][-1], rows[-1][0])
            left = None if left is None else left - len(rows)

    def delete(self, ids: Sequence[str]) -> None:
        """As the seam says."""
        self._handle.call(lambda done: Delete("task", "id", ids, done, STORAGE))

    def sweep(self, now: float) -> int:
        """As the seam says; some thousand rows at a time, so that others can write between them."""
        total = 0
        while True:
            count: int = self._handle.call(lambda done: Sweep(now, done))
            total += count
            if count < SWEEP_ROWS:
                return total

    # the schedule

    def schedule(self, item: Scheduled, done: Done) -> None:
        """As the seam says."""
        handle = self._handle
        handle.add(Schedule(item, f"{item.due_at:.6f}:{item.id}", done, handle.outbox))

    def due(self, shard: int, now: float, limit: int) -> list[Scheduled]:
        """As the seam says."""
        import json

        if shard:
            return []
        sql = "SELECT id, due_at, queue, data, attributes, key FROM scheduled WHERE due_at <= ? ORDER BY due_at LIMIT ?"
        return [
            Scheduled(id, due_at, queue, data, json.loads(attributes), key)
            for id, due_at, queue, data, attributes, key in self._handle.read(sql, (now, limit))
        ]

    def unschedule(self, keys: Sequence[str]) -> None:
        """As the seam says."""
        self._handle.call(lambda done: Delete("scheduled", "key", keys, done, STORAGE))

    def claim(self, key: str, owner: str, seconds: float) -> bool:
        """As the seam says."""
        return bool(self._handle.call(lambda done: TakeClaim(key, owner, seconds, done)))

    def release(self, key: str, owner: str) -> None:
        """As the seam says."""
        self._handle.call(lambda done: Release(key, owner, done))

    # dead letters

    def put_dead(self, letter: DeadLetter, done: Done) -> None:
        """As the seam says."""
        self._dead.put_dead(letter, done)

    def list_dead(self, queue: str | None = None, limit: int | None = None) -> Iterator[DeadLetter]:
        """As the seam says."""
        return self._dead.list_dead(queue, limit)

    def get_dead(self, id: str) -> list[DeadLetter]:
        """As the seam says."""
        return self._dead.get_dead(id)

    def delete_dead(self, keys: Sequence[str]) -> None:
        """As the seam says."""
        self._dead.delete_dead(keys)

    def discard(self, letters: Sequence[DeadLetter]) -> None:
        """As the seam says."""
        self._dead.discard(letters)

    # life

    def tick(self) -> None:
        """As the seam says."""
        if self._handle.is_open:
            self._handle.database.writer.kick()

    def pending_bytes(self) -> int:
        """As the seam says."""
        return self._pending

    def reset_after_fork(self) -> None:
        """As the seam says; called by itself after a fork."""
        self._handle.forget()
        self._lock = original("_thread", "allocate_lock")()
        self._pending = 0

    def close(self) -> None:
        """As the seam says."""
        self._handle.close()
