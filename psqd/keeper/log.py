"""The keeper's own log: the worker's layout, a few lines a day, and never a wait for who reads them."""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["LEVELS", "Log"]

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
#: Lines that wait for a reader that does not read; more are dropped, and counted.
MAX_WAITING = 1000
#: Most characters of a line's text.
MAX_TEXT = 8192


class Log:
    """Writes lines to a descriptor from a thread of its own: a full stderr must not stop the keeper.

    Args:
        fd: Where to.
        clock: Unix time.

    Attributes:
        format: ``text`` or ``json``.
        level: Lines below it are not written.
        dropped: Lines that nobody read in time.
    """

    def __init__(self, fd: int = 2, clock: Callable[[], float] = time.time) -> None:
        self._fd, self._clock, self._pid = fd, clock, os.getpid()
        self._lines: SimpleQueue[bytes | threading.Event | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.format = "text"
        self.level = LEVELS["INFO"]
        self.dropped = 0

    def configure(self, format: str, level: str) -> None:
        """As the worker says; what is unknown changes nothing."""
        if format in ("text", "json"):
            self.format = format
        self.level = LEVELS.get(level.upper(), self.level)

    def debug(self, text: str) -> None:
        """Of use to who looks for a fault."""
        self._write("DEBUG", text)

    def info(self, text: str) -> None:
        """What a person wants to follow."""
        self._write("INFO", text)

    def warning(self, text: str) -> None:
        """Something did not go well, and goes on."""
        self._write("WARNING", text)

    def error(self, text: str) -> None:
        """Somebody has to do something."""
        self._write("ERROR", text)

    def _write(self, level: str, text: str) -> None:
        if LEVELS[level] < self.level:
            return
        if self._lines.qsize() >= MAX_WAITING:
            self.dropped += 1
            return
        self._lines.put(self.line(level, text).encode("utf-8", "backslashreplace") + b"\n")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="keeper log", daemon=True)
            self._thread.start()

    def line(self, level: str, text: str) -> str:
        """A line, without its newline."""
        now = self._clock()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        if len(text) > MAX_TEXT:
            text = text[:MAX_TEXT] + "…"
        if self.format == "json":
            entry = {"time": stamp, "level": level, "logger": "keeper", "pid": self._pid, "message": text}
            return json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
        if not text.isprintable():  # nothing from outside may forge a line or drive a terminal
            text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        return f"{stamp} {level:<5} keeper[{self._pid}] {text}"

    def settle(self, timeout: float) -> bool:
        """Wait until the lines so far are written, for so many seconds at most; True where they are."""
        if self._thread is None:
            return True
        written = threading.Event()
        self._lines.put(written)
        return written.wait(timeout)

    def close(self, timeout: float = 1.0) -> None:
        """Write what waits, for so many seconds at most."""
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join(timeout)
            self._thread = None

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            if line is None:
                return
            if isinstance(line, threading.Event):
                line.set()
                continue
            while line:
                try:
                    line = line[os.write(self._fd, line) :]
                except BlockingIOError:  # somebody who shares the descriptor made it so
                    select.select((), (self._fd,), (), 1.0)
                except OSError:  # closed: there is nobody to tell
                    break
