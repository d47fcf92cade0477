"""The keeper's client for a psq file: extend, give back, strike; plain Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from psq.brokers.base import LeaseClient
from psq.errors import BrokerUnavailable
from psq.group_commit import Done
from psq.sqlite.database import Handle, Open
from psq.sqlite.messages import Extend, GiveBack, Strike
from psq.sqlite.opening import BROKER
from psq.sqlite.work import Work

__all__ = ["SQLiteLeaseClient", "from_spec"]

#: Seconds after which a strike fails instead of waiting for the lock any longer.
STRIKE_TIMEOUT = 30.0


def from_spec(spec: Mapping[str, Any]) -> SQLiteLeaseClient:
    """Make a client from `SQLiteBroker.lease_spec`."""
    return SQLiteLeaseClient(str(spec["path"]), str(spec.get("synchronous", "FULL")))


class SQLiteLeaseClient(LeaseClient):
    """Writes what the keeper decides about leases, with one native thread.

    Args:
        path: Of the file.
        synchronous: As the broker's.
    """

    knows_documents = True

    def __init__(self, path: str, synchronous: str = "FULL") -> None:
        self.dispatch: Callable[[Callable[[], None]], None] | None = None  # callbacks run in the writer's thread
        self._handle = Handle(path, synchronous, self, BROKER)
        self._waiting: dict[int, Callable[..., None]] = {}
        self._number = 0
        self._closed = False

    def connect(self) -> None:
        """As the seam says."""
        self._handle.add(Open(lambda result, error: None, BROKER, None, STRIKE_TIMEOUT))

    def extend(
        self, source: str, keys: Sequence[str], seconds: float, timeout: float, done: Callable[..., None]
    ) -> None:
        """As the seam says; what was lost is known."""
        self._send(lambda ended: Extend(source, keys, seconds, ended, timeout), keys, done)

    def give_back(self, source: str, keys: Sequence[str], timeout: float, done: Callable[..., None]) -> None:
        """As the seam says."""
        self._send(lambda ended: GiveBack(source, keys, 0.0, ended, None, timeout), keys, done)

    def strike(
        self, source: str, items: Sequence[tuple[str, bytes]], record: Mapping[str, Any], done: Callable[..., None]
    ) -> None:
        """As the seam says; the documents are read from their rows."""
        keys = [key for key, _ in items]
        self._send(lambda ended: Strike(source, keys, record, ended, STRIKE_TIMEOUT), keys, done)

    def _send(self, work: Callable[[Done], Work], keys: Sequence[str], done: Callable[..., None]) -> None:
        if self._closed:
            done(list(keys), BrokerUnavailable(f"{self._handle.path}: the connection is closed"))
            return
        self._number += 1
        number = self._number
        self._waiting[number] = done

        def ended(result: Any, error: Exception | None) -> None:
            if self._waiting.pop(number, None) is not None:
                done(result if error is None else [], error)

        self._handle.add(work(ended))

    def reset_after_fork(self) -> None:
        """In a forked child: what was sent was the parent's."""
        self._handle.forget()
        self._waiting.clear()

    def close(self) -> None:
        """As the seam says."""
        if self._closed:
            return
        self._closed = True
        self._handle.close()
        error = BrokerUnavailable(f"{self._handle.path}: the connection was closed")
        while self._waiting:
            _, done = self._waiting.popitem()
            done([], error)
