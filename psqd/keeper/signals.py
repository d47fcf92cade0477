"""Signals as something to read: whatever the loop does, none is handled in the middle of it."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

__all__ = ["HANDLED", "Signals", "name_of"]

#: What the keeper answers to.
HANDLED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTSTP,
    signal.SIGCONT,
    signal.SIGCHLD,
)


def name_of(number: int) -> str:
    """``SIGTERM``; ``signal 64`` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler of our own, not SIG_IGN: the worker and its tasks' subprocesses would inherit that."""


class Signals:
    """Catches signals from `install` to `restore`. For the main thread.

    Attributes:
        fd: Readable when `read` has something.
    """

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: dict[int, Any] = {}
        self._before_fd = -1

    def install(self) -> None:
        """Catch them from now on."""
        self._before_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in HANDLED:
            self._before[number] = signal.signal(number, _nothing)

    def read(self) -> list[int]:
        """The signals that came, in order."""
        try:
            return list(os.read(self.fd, 65536))
        except BlockingIOError:
            return []

    def restore(self) -> None:
        """As it was before. Idempotent."""
        if self._write_fd < 0:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(self._before_fd)
        os.close(self.fd)
        os.close(self._write_fd)
        self._write_fd = -1
