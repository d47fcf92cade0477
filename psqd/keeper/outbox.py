"""Writes to a pipe in order and never waits: what does not fit is written later by a native thread."""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Sequence

from psq.concurrency import native_thread, original

__all__ = ["Outbox"]

#: How long the thread waits at most for the pipe to become writable before it looks again, milliseconds.
_LOOK_AGAIN = 1000


class Outbox:
    """The writing side of a non-blocking pipe or socket. Safe from any thread; the order of writes is kept.

    Attributes:
        size: Bytes that are not yet written.
        freed: What `write` was given beside its data, once that was written; take from its end.
        ended: True when the reader is gone: all that is written from then is dropped.
    """

    __slots__ = ("_closed", "_fd", "_lock", "_queue", "_thread", "ended", "freed", "size")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # Native: a lock of gevent's would belong to the hub, and the thread has none.
        self._lock = original("_thread", "allocate_lock")()
        self._queue: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._thread = False
        self._closed = False
        self.size = 0
        self.freed: list[int] = []
        self.ended = False

    def write(self, data: bytes, frees: Sequence[int] = ()) -> None:
        """Write, now or later.

        Args:
            data: A whole frame.
            frees: Goes to `freed` once all of `data` is written.
        """
        with self._lock:
            if not self._queue:
                written = self._put(data)
                if written == len(data):
                    self.freed.extend(frees)
                    return
                rest = memoryview(data)[written:]
            else:
                rest = memoryview(data)
            self._queue.append((rest, frees))
            self.size += len(rest)
            start, self._thread = not self._thread, True
        if start:
            native_thread(self._run)

    def flush(self) -> None:
        """Write as much as fits now."""
        with self._lock:
            self._flush()

    def close(self) -> None:
        """Forget what is unwritten. The descriptor stays its owner's, who may close it after this."""
        with self._lock:
            self.abandon()

    def abandon(self) -> None:
        """`close` in a forked child, where the lock may be held for ever by a thread that is not there."""
        self._closed = self.ended = True

    def _put(self, data: bytes | memoryview) -> int:
        """Bytes that went out; all of them when there is nobody to read them any more."""
        if self.ended:
            return len(data)
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            self.ended = True
            return len(data)

    def _flush(self) -> None:
        queue = self._queue
        while queue:
            data, frees = queue[0]
            written = self._put(data)
            self.size -= written
            if written < len(data):
                queue[0] = (data[written:], frees)
                return
            queue.popleft()
            self.freed.extend(frees)

    def _run(self) -> None:
        poll = original("select", "poll")()
        poll.register(self._fd, select.POLLOUT)
        while True:
            poll.poll(_LOOK_AGAIN)
            with self._lock:
                if not self._closed:
                    self._flush()
                if self._closed or not self._queue:
                    self._thread = False
                    return
