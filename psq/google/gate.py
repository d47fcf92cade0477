"""A gate for calls: while it is closed they wait, and hold no thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from psq.google.calls import Call, CallDone, Later

__all__ = ["Gate"]


class Gate:
    """Calls that come while it is closed begin when it opens. Safe from any thread and greenlet; never blocks.

    Attributes:
        closed: See there.
    """

    __slots__ = ("_held", "closed")

    def __init__(self) -> None:
        self.closed = False
        self._held: deque[Callable[[], None]] = deque()

    def hold(self, start: Callable[[], Call | None], done: CallDone) -> Call:
        """Begin a call when the gate opens: the call, which can be cancelled before."""
        later = Later()
        self._held.append(lambda: later.begin(start, done))
        if not self.closed:  # it was opened between the caller's look and the line above
            self.open()
        return later

    def open(self) -> None:
        """Let calls through, those that wait first, for as long as nobody closes it again."""
        self.closed = False
        while not self.closed:  # one that finds it closed again waits here once more
            try:
                begin = self._held.popleft()
            except IndexError:
                return
            begin()
