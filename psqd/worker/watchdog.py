"""Tells, while it happens, which task keeps the hub from turning: it should yield, or be a subprocess's."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from psq.concurrency import native_thread, original
from psqd.worker.invocation import Invocation
from psqd.worker.logformat import printable

__all__ = ["LIMIT", "Watchdog"]

#: Seconds without a heartbeat after which it is told.
LIMIT = 1.0
#: Seconds between two looks.
PAUSE = 0.5
#: Frames of a stack that are told: the innermost.
FRAMES = 30


class Watchdog:
    """Looks at the heartbeat, in a native thread, and tells each stall once with the stack of the hub's thread.

    C code that keeps the interpreter keeps this thread too: such a stall is told when it is over (`Stall`).
    gevent's own monitor counts every switch of greenlets, and prints locals.

    Args:
        beat: Gives the monotonic instant of the last heartbeat.
        tell: ``tell(text, stack)``, called in the native thread.
        hub: Ident of the hub's thread; default: the caller's.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        beat: Callable[[], float],
        tell: Callable[[str, str], None],
        *,
        hub: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._beat, self._tell, self._clock = beat, tell, clock
        self._hub: int = original("_thread", "get_ident")() if hub is None else hub
        self._looked = clock()
        self._told = -1.0  # the last heartbeat before the stall that was told last

    def start(self) -> None:
        """Look until the process ends."""
        sleep = original("time", "sleep")

        def run() -> None:
            while True:
                sleep(PAUSE)
                self.look()

        native_thread(run)

    def look(self) -> None:
        """One look. For any thread but the hub's; never logs by `logging`, whose locks may be a greenlet's."""
        now, beat = self._clock(), self._beat()
        late, self._looked = now - self._looked, now
        if late > PAUSE + LIMIT / 2:  # we stood still as well: the process was stopped, or the machine is busy
            return
        if now - beat < LIMIT or beat == self._told:
            return
        self._told = beat
        self._tell(*self._report(now - beat))

    def _report(self, age: float) -> tuple[str, str]:
        since = f"for {age:.1f} s no other task, no message and no timer could go on"
        frame = sys._current_frames().get(self._hub)
        frames = list(_stack(frame))
        for number, (one, _) in enumerate(frames):
            if one.f_code is _CALL and (message := one.f_locals.get("message")) is not None:
                name = f"task {printable(message.id)} ({printable(message.function)})"
                return f"{name} does not yield: {since}", _text(frames[:number])
        return f"the hub stands still: {since}", _text(frames)


#: The frame below which a task's own frames are.
_CALL = Invocation._call.__code__


def _stack(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    """Frames and lines, innermost first; the thread that runs them goes on meanwhile."""
    while frame is not None:
        yield frame, frame.f_lineno
        frame = frame.f_back


def _text(frames: list[tuple[FrameType, int]]) -> str:
    walked: Any = reversed(frames[:FRAMES])
    return "".join(traceback.StackSummary.extract(walked).format())
