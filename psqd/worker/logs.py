"""The worker's log: set up once, and the lines of a task's life.

Lines are formatted where they are logged and handed to a `LogWriter`; nothing
here waits for a pipe, a disk or a lock, so it may be used on the hub and from
native threads alike.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from psq.concurrency import is_patched
from psq.message import Message
from psqd.worker.logformat import JSONLines, TextLines, printable, redact
from psqd.worker.logwriter import LogWriter

__all__ = ["LogHandle", "LogSettings", "TaskLog", "redact", "setup"]


class LogSettings(Protocol):
    """What is read of `psqd.config.LoggingConfig`."""

    @property
    def format(self) -> str:
        """``text`` or ``json``."""

    @property
    def level(self) -> str:
        """``debug``, ``info``, ``warning`` or ``error``."""

    @property
    def file(self) -> str | None:
        """Path; None or "": stderr."""


class _Handler(logging.Handler):
    """Formats in the caller, then hands over. It has no lock: one that a greenlet holds would stop a native thread."""

    def __init__(self, writer: LogWriter, formatter: logging.Formatter) -> None:
        super().__init__()
        self.writer = writer
        self.formatter: logging.Formatter = formatter

    def createLock(self) -> None:  # noqa: N802  (logging's name)
        """Make none."""
        self.lock = None

    def acquire(self) -> None:
        """Nothing: see the class."""

    def release(self) -> None:
        """Nothing: see the class."""

    def handle(self, record: logging.LogRecord) -> bool:
        """As the base class's, without its lock."""
        kept = self.filter(record)
        if kept:
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises, never blocks."""
        try:
            line = self.formatter.format(record)
        except Exception as error:  # bad arguments of a task's own log call
            record = _report_record(
                logging.ERROR,
                f"a line of {record.name} could not be formatted: {type(error).__name__}: {error}; "
                f"it was {record.msg!r} ({record.pathname}:{record.lineno})",
            )
            line = self.formatter.format(record)
        self.writer.put(line + "\n")


class LogHandle:
    """What `setup` gives back; the daemon holds it until it ends."""

    def __init__(self, config: LogSettings, worker_title: str, pid: int | None) -> None:
        self._title, self._pid = worker_title, pid
        self._formatter = self._formatter_of(config)
        self._writer = LogWriter(config.file or "", self._report)
        self._handler = _Handler(self._writer, self._formatter)
        self._root = logging.getLogger()
        self._old_level = self._root.level
        self._root.addHandler(self._handler)
        self._root.setLevel(config.level.upper())
        self._hub = _hook_hub()
        logging.captureWarnings(True)
        _handles.add(self)

    @property
    def dropped(self) -> int:
        """Lines that were lost since the start, as the log itself says too."""
        return self._writer.dropped

    @property
    def waiting(self) -> int:
        """Lines that are not written yet."""
        return self._writer.waiting()

    def reopen(self) -> None:
        """Open the log file anew (USR1, after logrotate). Returns at once; on stderr it does nothing."""
        if self._writer.path:
            self._writer.reopen()

    def reconfigure(self, config: LogSettings) -> None:
        """Apply another level, format or file, from the next line on; for a reload. Returns at once."""
        self._formatter = self._handler.formatter = self._formatter_of(config)
        self._root.setLevel(config.level.upper())
        if (config.file or "") != self._writer.path:
            self._writer.reopen(config.file or "")

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all lines so far are written; False if the time (seconds) ran out."""
        return self._writer.flush(timeout)

    def close(self, timeout: float = 1.0) -> int:
        """Write what waits, for at most `timeout` seconds, and take the handler away. Idempotent.

        Returns:
            Lines that were not written.
        """
        logging.captureWarnings(False)
        if self._handler in self._root.handlers:
            self._root.removeHandler(self._handler)
            self._root.setLevel(self._old_level)
        if self._hub is not None:
            del self._hub.print_exception
            self._hub = None
        return self._writer.close(timeout)

    def _formatter_of(self, config: LogSettings) -> logging.Formatter:
        return JSONLines(self._pid, self._title) if config.format == "json" else TextLines(self._pid)

    def warn(self, text: str, trace: str = "") -> None:
        """A warning from a native thread, past `logging`, whose locks may be a greenlet's. Never blocks."""
        if self._root.level <= logging.WARNING:
            record = _Record("psqd", logging.WARNING, text, time.time(), trace or None)
            self._writer.put(self._formatter.format(record) + "\n")

    def _report(self, text: str) -> str:
        return self._formatter.format(_report_record(logging.WARNING, text)) + "\n"


def setup(config: LogSettings, worker_title: str = "", *, pid: int | None = None) -> LogHandle:
    """Send the log of this process, the tasks' own and warnings included, to stderr or `config.file`.

    Never blocks later on: see `LogWriter`. Tracebacks that gevent would print itself are logged.

    Args:
        config: Format, level and file.
        worker_title: What to call this worker in JSON lines, "" for nothing.
        pid: Process id in the lines; None: this process's.

    Raises:
        ConfigError: The file can't be opened.
    """
    return LogHandle(config, worker_title, pid)


_handles: weakref.WeakSet[LogHandle] = weakref.WeakSet()


def _after_fork() -> None:
    for handle in _handles:
        handle._formatter._pid = os.getpid()  # type: ignore[attr-defined]


os.register_at_fork(after_in_child=_after_fork)


class _Record(logging.LogRecord):
    """A record made without looking for its caller, thread and process: a third of the cost, and safe anywhere."""

    def __init__(self, name: str, level: int, message: str, created: float, exc_text: str | None = None) -> None:
        self.__dict__ = {
            **_BLANK,
            "name": name,
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "msg": message,
            "created": created,
            "msecs": created % 1 * 1000,
            "exc_text": exc_text,
        }


_BLANK: dict[str, Any] = {
    **logging.makeLogRecord({}).__dict__,
    "pathname": __file__,
    "filename": os.path.basename(__file__),
    "module": "logs",
    "funcName": "",
}


def _report_record(level: int, text: str) -> logging.LogRecord:
    return _Record("psqd.log", level, text, time.time())


def _hook_hub() -> Any:
    """Log what gevent's hub would print: its prints go to stderr, and can block."""
    if not is_patched():
        return None
    from gevent import get_hub

    log = logging.getLogger("psqd.hub")

    def print_exception(
        context: object, kind: type[BaseException] | None, value: Any, traceback: TracebackType | None
    ) -> None:
        try:
            what = printable(context if isinstance(context, str) else repr(context), 200)
        except Exception as error:
            what = f"<{type(context).__name__}: {type(error).__name__}>"
        if not isinstance(value, BaseException):
            value = (kind or Exception)()
        log.error("%s failed", "the hub" if context is None else what, exc_info=(type(value), value, traceback))

    hub = get_hub()
    hub.print_exception = print_exception  # type: ignore[assignment, method-assign]
    return hub


class TaskLog:
    """Writes the lines of a task's life: one when it starts, one when it ends. No arguments, no results.

    Attributes:
        all: False (``logging.tasks: failures``): only of tasks that did not finish; the executor
            may then skip the calls for those that did.

    Args:
        all: See above.
        clock: Unix time.
    """

    def __init__(self, all: bool = True, *, clock: Callable[[], float] = time.time) -> None:
        self.all = all
        self._clock = clock
        self._log = logging.getLogger("psqd.task")

    def started(self, message: Message, queue: str, waited: float) -> None:
        """It starts now, after it waited for so many seconds since it was due."""
        if self.all and self._log.isEnabledFor(logging.INFO):
            self._write(message, queue, "started", waited, None, "", "", logging.INFO)

    def ended(
        self,
        message: Message,
        queue: str,
        outcome: str,
        waited: float,
        ran: float,
        detail: str = "",
        exc_text: str = "",
        level: int = logging.INFO,
    ) -> None:
        """It ended.

        Args:
            message: The task.
            queue: Name of its queue here.
            outcome: ``finished``, ``failed``, ``retried`` …
            waited: Seconds from when it was due to its start.
            ran: Seconds from its start to its end.
            detail: What else to say, on the same line: the error's type and text, when it runs again.
            exc_text: The traceback's text.
            level: Of `logging`.
        """
        if (self.all or outcome != "finished") and self._log.isEnabledFor(level):
            self._write(message, queue, outcome, waited, ran, detail, exc_text, level)

    def _write(
        self,
        message: Message,
        queue: str,
        outcome: str,
        waited: float,
        ran: float | None,
        detail: str,
        exc_text: str,
        level: int,
    ) -> None:
        id, function = printable(message.id), printable(message.function)
        record = _Record("psqd.task", level, f"{id} {function} {outcome}", self._clock(), exc_text or None)
        task: dict[str, Any] = {
            "task_id": id,
            "function": function,
            "queue": printable(queue),
            "attempt": message.attempt,
            "run": message.run,
            "outcome": outcome,
            "waited": round(waited, 3),
        }
        if ran is not None:
            task["ran"] = round(ran, 3)
        if detail:
            task["detail"] = printable(detail, 1000)
        record.__dict__["psqd_task"] = task
        self._log.handle(record)
