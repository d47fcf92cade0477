"""Where log lines go: a bounded queue, and a native thread that writes it to stderr or a file.

A write to a full pipe blocks; in the worker it would block the hub and so
every task. Here it blocks a thread that nobody waits for, and what does not
fit the queue meanwhile is dropped, counted and told.
"""

from __future__ import annotations

import os
import time
import weakref
from _queue import Empty, SimpleQueue  # the C one: `queue.SimpleQueue` is gevent's in a patched process
from collections.abc import Callable

from psq.concurrency import Waiter, native_thread, original
from psq.errors import ConfigError

__all__ = ["MAX_BYTES", "MAX_LINES", "LogWriter"]

#: Most lines, and about most bytes, that wait to be written; a line more is dropped.
MAX_LINES, MAX_BYTES = 10_000, 8 * 1024 * 1024
#: Most lines in one write.
BATCH_LINES = 500
#: Seconds between two reports of dropped lines.
REPORT_EVERY = 5.0

_STDERR = 2

_writers: weakref.WeakSet[LogWriter] = weakref.WeakSet()


class _Command:
    """Runs in the writer's thread, after all lines that were put before it."""

    __slots__ = ("action", "waiter")

    def __init__(self, action: Callable[[], None] | None, waiter: Waiter | None) -> None:
        self.action, self.waiter = action, waiter


class LogWriter:
    """Writes lines in order, in a native thread of its own. `put` may be called from any thread or greenlet.

    Attributes:
        dropped: Lines that were lost: no room, or the write failed.
        error: Why the last write or reopening failed, "" for none.

    Args:
        path: The file, opened for appending; "" for stderr.
        report: Gives the line that tells of lost lines and other trouble (runs in the native
            thread: it must not log, nor touch gevent).

    Raises:
        ConfigError: The file can't be opened.
    """

    def __init__(
        self,
        path: str,
        report: Callable[[str], str],
        *,
        max_lines: int = MAX_LINES,
        max_bytes: int = MAX_BYTES,
        report_every: float = REPORT_EVERY,
    ) -> None:
        self.path = path
        self.dropped = 0
        self.error = ""
        self._report, self._report_every = report, report_every
        self._max_lines, self._max_bytes = max_lines, max_bytes
        self._fd = _open(path) if path else _STDERR
        self._queue: SimpleQueue[str | _Command] = SimpleQueue()
        self._lock = original("_thread", "allocate_lock")()  # held for a few bytecodes only
        self._select = original("select", "select")
        self._close = original("os", "close")  # gevent's waits for its hub, which is not this thread's
        self._lines = self._bytes = 0  # in the queue
        self._reported, self._reported_at = 0, 0.0
        self._torn = False  # the last write ended inside a line
        self._closed = False
        self._forked = False
        _writers.add(self)
        native_thread(self._run)

    def put(self, line: str) -> bool:
        """Hand over a line, its newline included. Never blocks.

        Returns:
            False if it was dropped.
        """
        if self._forked:  # no thread came along: a task's own child process may block itself
            os.write(self._fd, line.encode("utf-8", "backslashreplace"))
            return True
        size = len(line)
        with self._lock:
            if self._closed or self._lines >= self._max_lines or self._bytes + size > self._max_bytes:
                self.dropped += 1
                return False
            self._lines += 1
            self._bytes += size
        self._queue.put(line)
        return True

    def waiting(self) -> int:
        """Lines that are not written yet."""
        return self._lines

    def reopen(self, path: str | None = None) -> None:
        """Open the file anew, after what was put before is written. Returns at once.

        Where that fails, the old file is written on, and a line says so. On stderr nothing happens.

        Args:
            path: Another file from now on ("" for stderr); None: the same.
        """
        self._queue.put(_Command(lambda: self._reopen(self.path if path is None else path), None))

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was put before is written; False if the time (seconds) ran out."""
        if self._forked or self._closed:
            return True
        waiter = Waiter()
        self._queue.put(_Command(None, waiter))
        return waiter.wait(timeout)

    def close(self, timeout: float = 1.0) -> int:
        """Write what waits, for at most `timeout` seconds, then take no more. Idempotent.

        Returns:
            Lines that were not written.
        """
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed and not self._forked:
            waiter = Waiter()
            self._queue.put(_Command(self._end, waiter))
            waiter.wait(timeout)
        return self._lines

    # in the native thread

    def _run(self) -> None:
        lines: list[str] = []
        while True:
            item: str | _Command | None
            try:
                item = self._queue.get(not lines, self._report_every if self.dropped > self._reported else None)
            except Empty:
                if not lines:
                    self._tell_drops()
                    continue
                item = None
            if type(item) is str:
                lines.append(item)
                if len(lines) < BATCH_LINES:
                    continue
            self._write_lines(lines)
            lines = []
            self._tell_drops()
            if isinstance(item, _Command):
                if item.action is not None:
                    item.action()
                if item.waiter is not None:
                    item.waiter.set()
                if item.action == self._end:
                    return

    def _write_lines(self, lines: list[str]) -> None:
        if not lines:
            return
        text = "".join(lines)
        written = self._write(text)
        with self._lock:
            self._lines -= len(lines)
            self._bytes -= len(text)
            if not written:
                self.dropped += len(lines)

    def _write(self, text: str) -> bool:
        data = memoryview((("\n" if self._torn else "") + text).encode("utf-8", "backslashreplace"))
        total = len(data)
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody made our stderr non-blocking
                self._select([], [self._fd], [], 1.0)
            except OSError as error:  # the reader is gone, the disk is full
                self.error = str(error)
                self._torn = self._torn or len(data) < total
                return False
        self._torn = False
        return True

    def _tell_drops(self) -> None:
        dropped, now = self.dropped, time.monotonic()
        if dropped == self._reported or (self._reported_at and now - self._reported_at < self._report_every):
            return
        why = f" ({self.error})" if self.error else ": the reader is too slow"
        if self._write(self._report(f"{dropped - self._reported} log lines were lost{why}")):
            self._reported, self._reported_at, self.error = dropped, now, ""

    def _reopen(self, path: str) -> None:
        try:
            fd = _open(path) if path else _STDERR
        except ConfigError as error:
            self.error = str(error)
            self._write(self._report(f"{error}; going on with the old one"))
            return
        self._fd, old = fd, self._fd
        self.path = path
        if old != _STDERR:
            self._close(old)

    def _end(self) -> None:
        self._reported_at = 0.0
        self._tell_drops()
        if self._fd != _STDERR:
            self._close(self._fd)
            self._fd = _STDERR


def must_open(path: str) -> None:
    """See that a log file can be opened; it is there afterwards.

    Raises:
        ConfigError: It can't.
    """
    os.close(_open(path))


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise ConfigError(f"logging.file: can't open {path!r}: {error.strerror}") from error


def _after_fork() -> None:
    for writer in _writers:
        writer._forked = True


os.register_at_fork(after_in_child=_after_fork)
