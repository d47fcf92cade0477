"""Reads what the worker writes of leases, in bulk: a look at the pipe costs far more than a lease."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from psqd.keeper.link import KeeperEnd, LinkBroken
from psqd.keeper.loop import Loop

__all__ = ["Intake"]

#: While the worker writes more often than this, it is read so often and no more, seconds. A lease is ten at least.
PAUSE = 0.02
#: After a read larger than this the next one is made at once, bytes: the pipe holds a megabyte.
BULK = 256 * 1024


class Intake:
    """The lease pipe of one worker.

    Args:
        loop: Calls when there is something to read.
        link: What is read.
        apply: Gets the frames, in order.
        on_end: Called once, with the error or None: nothing comes any more.
    """

    def __init__(
        self,
        loop: Loop,
        link: KeeperEnd,
        apply: Callable[[Sequence[tuple[Any, ...]]], None],
        on_end: Callable[[LinkBroken | None], None],
    ) -> None:
        self._loop, self._link, self._apply, self._on_end = loop, link, apply, on_end
        self._fd = link.leases_fd
        self._at, self._last = inf, -inf
        self._open = True
        loop.watch(self._fd, self._read)

    def run(self, now: float) -> float:
        """Read, if it is time.

        Returns:
            Monotonic instant at which it wants to be called again, `inf` for never.
        """
        if now >= self._at:
            self._read()
        return self._at

    def _read(self) -> None:
        size = self._take()
        if not self._open:
            return
        now = time.monotonic()
        often, self._last = now - self._last < 2 * PAUSE, now
        before, self._at = self._at, inf
        if size >= BULK:
            self._at = now
        elif size and often:
            self._at = now + PAUSE
        if (before < inf) != (self._at < inf):
            (self._loop.mute if self._at < inf else self._loop.unmute)(self._fd)

    def _take(self) -> int:
        try:
            frames, size, is_open = self._link.read_leases()
        except LinkBroken as error:
            self._end(error)
            return 0
        self._apply(frames)
        if not is_open:
            self._end(None)
        return size

    def rest(self) -> None:
        """Read all that is there: the worker is dead."""
        while self._open and self._take():
            pass
        self.close()

    def _end(self, error: LinkBroken | None) -> None:
        self.close()
        self._on_end(error)

    def close(self) -> None:
        """Read no more. Idempotent; the link stays its owner's."""
        if self._open:
            self._open, self._at = False, inf
            self._loop.unwatch(self._fd)
