"""The two formats of a log line: text for people, JSON for collectors.

Both escape what could forge a line or drive a terminal, hide the secrets in
URLs, and bound their length; a task's function name is chosen by its sender.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS, merge_record_extra
from pythonjsonlogger.json import JsonEncoder, JsonFormatter

from psq.context import current_task

__all__ = ["JSONLines", "TextLines", "bounded", "printable", "redact"]

#: Most characters of a message, and of a traceback, in a line.
MAX_MESSAGE, MAX_TRACEBACK = 8_192, 16_384
#: Most characters of a JSON line; what a logger adds of its own is cut to fit.
MAX_LINE = 65_536

_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029]
_ESCAPES = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROLS}
_ONE_LINE = {**_ESCAPES, 0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}
_MANY_LINES = {**_ESCAPES, 0x09: "\t", 0x0A: "\n    "}

_USERINFO = re.compile(r"""(://)[^\s/?#"'<>]*@""")
_SECRET = re.compile(r"""([?&][\w-]*(?:password|passwd|secret|token|key)=)[^\s&#"'<>]+""", re.IGNORECASE)


def redact(text: str) -> str:
    """The text with the user and password of each URL, and secrets in its query, as ``***``."""
    if "://" not in text:
        return text
    return _SECRET.sub(r"\1***", _USERINFO.sub(r"\1***@", text))


def printable(text: str, limit: int = 300) -> str:
    """Text from outside on one line: control characters escaped, cut to `limit` characters."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text if text.isprintable() else text.translate(_ONE_LINE)


def bounded(text: str, limit: int) -> str:
    """The text, its middle left out where it is longer than `limit` characters: the end of a traceback says most."""
    if len(text) <= limit:
        return text
    head, tail = limit // 3, limit - limit // 3
    return f"{text[:head]}\n… {len(text) - head - tail} characters left out …\n{text[-tail:]}"


class _Stamp:
    """Formats times as ``2026-11-24T22:40:01.123Z``; most lines share a second."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = (-1, "")

    def __call__(self, created: float) -> str:
        milliseconds = int(created * 1000)
        second, rest = divmod(milliseconds, 1000)
        known, text = self._last
        if second != known:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._last = (second, text)
        return f"{text}.{rest:03d}Z"


class TextLines(logging.Formatter):
    """``2026-11-24T22:40:01.123Z INFO  psqd.task[4711] …``; further lines are indented.

    What a task logs itself begins with its id.

    Args:
        pid: Process id to show; None: this process's.
    """

    def __init__(self, pid: int | None = None) -> None:
        super().__init__()
        self._pid = os.getpid() if pid is None else pid
        self._stamp = _Stamp()

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        text = record.getMessage().rstrip("\n")
        task: Mapping[str, Any] | None = record.__dict__.get("psqd_task")
        if task is not None:
            text = f"{text} {_pairs(task)}"
        elif current_task:  # a line that the task itself logs begins with its id, as ours about it do
            text = f"{printable(current_task.id)} {text}"
        if len(text) > MAX_MESSAGE and "psqd_whole" not in record.__dict__:
            text = bounded(text, MAX_MESSAGE)
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            text = f"{text}\n{bounded(record.exc_text.rstrip(), MAX_TRACEBACK)}"
        if record.stack_info:
            text = f"{text}\n{bounded(record.stack_info, MAX_TRACEBACK)}"
        if not text.isprintable():
            text = text.translate(_MANY_LINES)
        line = f"{self._stamp(record.created)} {record.levelname:<5} {record.name}[{self._pid}] {text}"
        return redact(line)


def _pairs(task: Mapping[str, Any]) -> str:
    text = f"queue={task['queue']} attempt={task['attempt']}"
    if task["run"] != 1:
        text += f" run={task['run']}"
    text += f" waited={task['waited']:.3f}s"
    if "ran" in task:
        text += f" ran={task['ran']:.3f}s"
    if task.get("detail"):
        text += f": {task['detail']}"
    return text


class JSONLines(JsonFormatter):
    """One JSON object a line: time, level, logger, pid, worker, message, then what the record brings.

    Args:
        pid: Process id to show; None: this process's.
        worker: What to call this worker, "" to leave it out.
    """

    def __init__(self, pid: int | None = None, worker: str = "") -> None:
        own = ("time", "level", "logger", "pid", "worker", "traceback", "stack", "psqd_task", "psqd_whole")
        super().__init__(reserved_attrs=[*RESERVED_ATTRS, *own])
        self._pid = os.getpid() if pid is None else pid
        self._worker = worker
        self._stamp = _Stamp()
        # json.dumps would make an encoder for each line
        self._encode: Callable[[Any], str] = JsonEncoder(separators=(",", ":")).encode
        self._plain = json.JSONEncoder(separators=(",", ":"), default=str, skipkeys=True).encode

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """Fill `log_data` from the record (the base class's hook)."""
        log_data["time"] = self._stamp(record.created)
        log_data["level"] = record.levelname
        log_data["logger"] = record.name
        log_data["pid"] = self._pid
        if self._worker:
            log_data["worker"] = self._worker
        whole = "psqd_whole" in record.__dict__
        log_data["message"] = record.message if whole else bounded(record.message, MAX_MESSAGE)
        exc_text = message_dict.pop("exc_info", None)
        stack = message_dict.pop("stack_info", None)
        task: Mapping[str, Any] | None = record.__dict__.get("psqd_task")
        if task is not None:
            log_data.update(task)
        else:
            merge_record_extra(record, log_data, reserved=self._skip_fields)
            for key, value in message_dict.items():
                log_data.setdefault(str(key), value)
            if current_task:
                log_data.setdefault("task_id", printable(current_task.id))
                log_data.setdefault("function", printable(current_task.function))
                log_data.setdefault("queue", current_task.queue)
                log_data.setdefault("attempt", current_task.attempt)
        if exc_text:
            log_data["traceback"] = bounded(str(exc_text).rstrip(), MAX_TRACEBACK)
        if stack:
            log_data["stack"] = bounded(str(stack), MAX_TRACEBACK)

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        """The object as one line; what JSON can't say is written as its text."""
        try:
            line = self._encode(log_data)
        except (TypeError, ValueError, RecursionError):
            line = self._plain({key: _text(value) for key, value in log_data.items()})
        if len(line) > MAX_LINE and len(log_data["message"]) <= MAX_MESSAGE + 100:
            line = self._plain({key: _text(value, 1_000) for key, value in log_data.items() if key != "stack"})
        return redact(line)


def _text(value: Any, limit: int = MAX_TRACEBACK) -> Any:
    if value is None or type(value) in (bool, int, float):
        return value
    try:
        return bounded(str(value), limit)
    except Exception as error:
        return f"<{type(value).__name__}: {type(error).__name__}>"
