"""How a task's error travels: as type, message and traceback; and back into an exception that fits ``except``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from psq.errors import TaskCancelled, TaskFailed
from psq.functions import class_of

__all__ = ["ErrorDocument", "cancelled", "error_document", "rebuild"]

#: Most characters of an error's message and of its traceback that are kept (of the traceback: the last).
MAX_MESSAGE, MAX_TRACEBACK = 10_000, 50_000


class ErrorDocument(TypedDict):
    """A task's error, as records and dead letters carry it.

    Attributes:
        type: ``module:QualName``.
        message: Its text.
        traceback: The traceback's text, as in the worker.
    """

    type: str
    message: str
    traceback: str


def error_document(error: BaseException, *, skip: int = 0) -> ErrorDocument:
    """Say an error in JSON. Never raises, whatever the error's own methods do.

    Args:
        error: What the task raised.
        skip: Outermost frames to leave out of the traceback: those of whoever called the task.
    """
    import traceback

    cls = type(error)
    try:
        message = str(error)
    except Exception as broken:
        message = f"<its text can't be had: {type(broken).__name__}>"
    try:
        trace = error.__traceback__
        for _ in range(skip):
            if trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
        text = "".join(traceback.format_exception(cls, error, trace))
    except Exception as broken:
        text = f"<the traceback can't be had: {type(broken).__name__}>"
    if len(text) > MAX_TRACEBACK:
        text = "…" + text[-MAX_TRACEBACK:]
    return {
        "type": f"{cls.__module__}:{cls.__qualname__}",
        "message": _sound(message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "…"),
        "traceback": _sound(text),
    }


def _sound(text: str) -> str:
    """Without lone surrogates: every storage can keep it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def rebuild(document: Mapping[str, Any], task_id: str) -> TaskFailed:
    """The error that ``result()`` raises.

    It is a TaskFailed, and also of the original type where that is a builtin or a class
    that this process has imported; nothing is imported for it, and none of its code runs.
    Its text is the original one; the worker's traceback is a note below it.
    """
    name = str(document.get("type") or "builtins:Exception")
    message = str(document.get("message") or "")
    trace = str(document.get("traceback") or "")
    original = class_of(name)
    error: TaskFailed | None = None
    if original is not None and issubclass(original, Exception) and not _steers(original):
        error = _both(original, message)
    if error is None:
        qualname = name.rpartition(":")[2] if name.startswith("builtins:") else name.replace(":", ".")
        error = TaskFailed(f"{qualname}: {message}" if message else qualname)
    error.task_id, error.error_type, error.message, error.traceback = task_id, name, message, trace
    if trace:
        error.add_note(f"\nThe task {task_id} failed in its worker:\n\n{trace.rstrip()}")
    return error


def _steers(original: type) -> bool:
    """True for what would steer a task that waits for another one's result. (A SystemExit is no Exception.)"""
    retry = class_of("psq.task:Retry")
    return retry is not None and issubclass(original, retry)


def cancelled(task_id: str) -> TaskCancelled:
    """The error of a task that was cancelled."""
    return TaskCancelled(f"the task {task_id} was cancelled", task_id=task_id)


class _Rebuilt(TaskFailed):
    """The part that all rebuilt classes share: their text and how they are pickled are never the original's."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        document = {"type": self.error_type, "message": self.message, "traceback": self.traceback}
        return rebuild, (document, self.task_id)


_classes: dict[type, type[TaskFailed] | None] = {}


def _both(original: type[Exception], message: str) -> TaskFailed | None:
    """An error of the class and of TaskFailed, made without the class's own constructor; None where that can't be."""
    if original not in _classes:
        if len(_classes) > 1000:  # classes made on the fly must not pile up
            _classes.clear()
        _classes[original] = _join(original)
    cls = _classes[original]
    if cls is None:
        return None
    # By the nearest builtin: OSError's __new__ differs from Exception's, and the class's own asks for who knows what
    builtin: Any = next(base for base in original.__mro__ if base.__module__ == "builtins")
    try:
        error: Any = builtin.__new__(cls, message)
        error.args = (message,)
    except Exception:
        return None
    assert isinstance(error, TaskFailed)
    return error


def _join(original: type[Exception]) -> type[TaskFailed] | None:
    if issubclass(original, TaskFailed):
        bases: tuple[type, ...] = (original,) if issubclass(original, _Rebuilt) else (_Rebuilt, original)
    else:
        bases = (_Rebuilt, original)
    namespace = {"__module__": original.__module__, "__qualname__": original.__qualname__}
    try:
        made = type(original.__name__, bases, namespace)
    except Exception:  # its metaclass or __init_subclass__ objects
        return None
    assert issubclass(made, TaskFailed)
    return made
