"""What the keeper waits on: descriptors, and other threads that have something for it."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from math import inf

__all__ = ["Loop"]


class Loop:
    """Calls a function when its descriptor is readable. For one thread; only `wake` is for any."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._wake_fd, self._awake)

    def watch(self, fd: int, call: Callable[[], None]) -> None:
        """Call this whenever the descriptor is readable, or its other end is closed."""
        self._calls[fd] = call
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Before it is closed. Idempotent."""
        if self._calls.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def mute(self, fd: int) -> None:
        """Do not call for this descriptor until `unmute`; its end is not told either."""
        if fd in self._calls:
            # without any event epoll would still report, again and again, that the other end is closed
            self._epoll.modify(fd, select.EPOLLET)

    def unmute(self, fd: int) -> None:
        """Call for it again."""
        if fd in self._calls:
            self._epoll.modify(fd, select.EPOLLIN)

    def wait(self, at: float) -> None:
        """Wait until something is readable or this monotonic instant has come, and make the calls."""
        timeout = None if at == inf else max(0.0, at - time.monotonic())
        for fd, _ in self._epoll.poll(timeout):
            call = self._calls.get(fd)
            if call is not None:  # else a call before it has ended that
                call()

    def wake(self) -> None:
        """End a `wait`. From any thread, also after `close`."""
        with contextlib.suppress(OSError, ValueError):
            os.eventfd_write(self._wake_fd, 1)

    def _awake(self) -> None:
        os.eventfd_read(self._wake_fd)

    def close(self) -> None:
        """Let go of everything that is ours; what was watched stays its owner's."""
        self._epoll.close()
        wake_fd, self._wake_fd = self._wake_fd, -1
        os.close(wake_fd)
