"""A worker that ran out of memory in its own code ends: what was lost with it, nobody knows.

A task that asks for too much gets its MemoryError and fails; that is its own
affair. But while it sits on all there is, whatever else wants a kilobyte fails
too: a callback of the hub, the answer to an ack, the start of a greenlet. Such
a loss leaves a task without an end, or a lease that is kept for half a day. A
dead worker leaves neither: its keeper gives back, strikes, and starts another.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from gevent import get_hub

from psqd.keeper.link import NO_MEMORY

__all__ = ["Exhausted"]

#: Whose MemoryErrors are not a task's own: first parts of module names.
OURS = ("psq", "psqd", "grpc")
#: Loggers that they tell of an error that nobody waits for.
LOGGERS = OURS


def _end() -> None:
    os._exit(NO_MEMORY)


class Exhausted:
    """Watches for MemoryErrors that nobody waits for: in the hub, in native threads, in the log.

    Args:
        end: Ends the process; needs no memory.
    """

    def __init__(self, end: Callable[[], object] = _end) -> None:
        self._end = end
        self._handler = _Handler(self)
        self._restore: list[Callable[[], None]] = []

    def install(self) -> None:
        """From now on, in the hub of this thread. After `logs.setup`."""
        hub = get_hub()
        for place, name, hook in (
            (hub, "print_exception", self._in_hub(hub.print_exception)),
            (sys, "unraisablehook", self._in_thread(sys.unraisablehook)),
        ):
            self._restore.append(partial(setattr, place, name, getattr(place, name)))
            setattr(place, name, hook)
        for logger in map(logging.getLogger, LOGGERS):
            self._restore.append(partial(logger.removeHandler, self._handler))
            logger.addHandler(self._handler)

    def remove(self) -> None:
        """As before `install`."""
        while self._restore:
            self._restore.pop()()

    def look_at(self, error: object, trace: TracebackType | None) -> None:
        """End the process, if it is out of memory and the error did not begin in a task's own code."""
        if (isinstance(error, MemoryError) or error is MemoryError) and _is_ours(trace):
            self._end()

    def _in_hub(self, before: Callable[..., None]) -> Callable[..., None]:
        def print_exception(context: object, kind: object, value: object, trace: TracebackType | None) -> None:
            self.look_at(value if value is not None else kind, trace)  # first: to log it takes memory
            before(context, kind, value, trace)

        return print_exception

    def _in_thread(self, before: Callable[[Any], object]) -> Callable[[Any], None]:
        def unraisablehook(unraisable: Any) -> None:
            self.look_at(unraisable.exc_value or unraisable.exc_type, unraisable.exc_traceback)
            before(unraisable)

        return unraisablehook


class _Handler(logging.Handler):
    """Has no lock, as psqd's own has none."""

    def __init__(self, exhausted: Exhausted) -> None:
        super().__init__()
        self._exhausted = exhausted

    def createLock(self) -> None:  # noqa: N802  (logging's name)
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        if record.exc_info:
            self._exhausted.look_at(record.exc_info[1], record.exc_info[2])
        return True


def _is_ours(trace: TracebackType | None) -> bool:
    """Whether what was running had been begun by us: gevent's own frames say nothing of that."""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0]
        if module != "gevent":
            return module in OURS
        trace = trace.tb_next
    return True
