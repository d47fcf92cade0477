"""Writing results: records of one task one after the other, and no second look at what we wrote ourselves."""

from __future__ import annotations

from collections import OrderedDict, deque
from functools import partial
from typing import Any

from psq.concurrency import original
from psq.errors import StorageError, StorageRefused
from psq.storages.base import TERMINAL, TaskRecord
from psq.storages.datastore_commit import KEPT, Ended, Seen
from psq.storages.datastore_heads import Head, Heads
from psq.storages.datastore_records import TaskHead

__all__ = ["Results"]

#: Records written before the terminal one whose versions are remembered.
KNOWN = 10_000


class Results:
    """Writes records of tasks. Safe from any thread and greenlet.

    Args:
        heads: Writes a record with its parts.
    """

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._lock = original("_thread", "allocate_lock")()
        self._known: OrderedDict[str, int] = OrderedDict()  # id -> version of what was written early
        self._early: dict[str, deque[tuple[TaskRecord, Ended]]] = {}  # id -> what waits for its early write

    def put(self, record: TaskRecord, done: Ended) -> None:
        """Write a record; ``done(version | KEPT, error)``. See `Storage.put`."""
        early = record.state not in TERMINAL
        if early or self._early:  # records of one task go one after the other
            with self._lock:
                waiting = self._early.get(record.id)
                if waiting is not None:
                    waiting.append((record, done))
                    return
                if early:
                    self._early[record.id] = deque()
        version = self._known.pop(record.id, None) if self._known else None
        try:
            head = TaskHead(record, None if version is None else Seen(version, None))
        except (TypeError, ValueError) as error:
            refused = StorageRefused(f"the record of task {record.id!r}: {type(error).__name__}: {error}")
            self._stored(record, None, done, None, refused)
            return
        try:
            self._heads.put(head, partial(self._stored, record, head, done))
        except StorageError as error:
            self._stored(record, head, done, None, error)

    def _stored(
        self, record: TaskRecord, head: Head | None, done: Ended, version: Any, error: Exception | None
    ) -> None:
        if head is not None and head.seen is not None and error is None:
            self._heads.tidy(head, version)
        if record.state not in TERMINAL:
            with self._lock:
                waiting = self._early.pop(record.id)
                if error is None and version is not KEPT:
                    self._known[record.id] = version
                    if len(self._known) > KNOWN:
                        self._known.popitem(last=False)
            for item in waiting:
                self.put(*item)
        done(version, error)
