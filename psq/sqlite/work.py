"""What can be written to a psq file, and how its callbacks are handed over."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

from psq.group_commit import Done
from psq.sqlite.opening import Kinds

__all__ = ["LATER", "Careful", "Outbox", "Transaction", "Work"]

#: As a result: this work is not over, it was put off.
LATER = object()


class Careful(Exception):
    """Raised by work that must be written item by item; the transaction is begun again."""


class Transaction:
    """What work is given to write with.

    Attributes:
        connection: Inside a transaction.
        now: Unix time at its begin, seconds.
        began: Monotonic instant of its begin.
        careful: Write item by item: some item is not as expected.
        touched: Source -> unix time from which something of it may be had; told to others after the commit.
    """

    __slots__ = ("began", "careful", "connection", "now", "touched")

    def __init__(self, connection: sqlite3.Connection, careful: bool) -> None:
        self.connection, self.careful = connection, careful
        self.began = time.monotonic()
        self.now = time.time()
        self.touched: dict[str, float] = {}

    def touch(self, source: str, at: float) -> None:
        """Something of this source can be had from `at` on."""
        known = self.touched.get(source)
        if known is None or at < known:
            self.touched[source] = at


class Outbox:
    """Callbacks of one owner, run together after each commit: one hand-over to the hub, not one an item.

    Args:
        dispatch: Gives the owner's `dispatch`, or None to run callbacks in the writer's thread.
    """

    __slots__ = ("_calls", "_dispatch")

    def __init__(self, dispatch: Callable[[], Callable[[Callable[[], None]], None] | None]) -> None:
        self._dispatch = dispatch
        self._calls: list[tuple[Done, Any, Exception | None]] = []

    def add(self, done: Done, result: Any, error: Exception | None) -> None:
        """Call it after this commit. Only in the writer's thread."""
        self._calls.append((done, result, error))

    def clear(self) -> None:
        """Forget what was added (in a forked child)."""
        self._calls = []

    def flush(self) -> None:
        """Run what was added. Only in the writer's thread."""
        if self._calls:
            calls, self._calls = self._calls, []
            self.send(calls)

    def send(self, calls: list[tuple[Done, Any, Exception | None]]) -> None:
        """Run callbacks now, or hand them to the hub. From any thread."""
        dispatch = self._dispatch()
        if dispatch is None:
            _run(calls)
        else:
            dispatch(lambda: _run(calls))


def _run(calls: list[tuple[Done, Any, Exception | None]]) -> None:
    for done, result, error in calls:
        try:
            done(result, error)
        except Exception:
            logging.getLogger("psq").exception("a callback of the SQLite writer failed")


class Work:
    """Something to write. Ends exactly once: written, failed, late or cancelled.

    Args:
        done: ``done(result, error)``.
        kinds: Which errors its owner gets.
        outbox: Through which `done` is called; None: directly, in the writer's thread, and it must not raise.
        timeout: Seconds after which it fails instead of waiting any longer; None: it waits for ever.
    """

    __slots__ = ("deadline", "done", "kinds", "outbox", "over", "result")

    #: Within a transaction lower ones are written first.
    order: ClassVar[int] = 50
    #: It must survive a power loss. A lease need not: its holder does not survive either.
    durable: ClassVar[bool] = True

    def __init__(self, done: Done, kinds: Kinds, outbox: Outbox | None = None, timeout: float | None = None) -> None:
        self.done, self.kinds, self.outbox = done, kinds, outbox
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.over = False
        self.result: Any = None

    def weight(self) -> int:
        """Bytes, roughly; what transactions are cut by."""
        return 100

    @classmethod
    def write(cls, tx: Transaction, works: Sequence[Self]) -> Sequence[Any] | None:
        """Write all of them.

        Returns:
            A result for each, in order, an exception for one that failed alone; None: None for all.

        Raises:
            Careful: See there.
            Exception: Nothing was written; halves are tried until the culprit stands alone.
        """
        raise NotImplementedError

    def unlocked(self, connection: sqlite3.Connection) -> bool:
        """Try to find the result by reading; True when `result` is set and there is nothing to write."""
        return False

    def complete(self, result: Any, error: Exception | None) -> None:
        """End it, unless it is over or put off."""
        if self.over or result is LATER:
            return
        self.over = True
        if error is None and isinstance(result, Exception):
            result, error = None, result
        if self.outbox is None:
            self.done(result, error)
        else:
            self.outbox.add(self.done, result, error)
