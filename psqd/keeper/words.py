"""Two numbers in the memory that keeper and worker share."""

from __future__ import annotations

import mmap

__all__ = ["Words"]


class Words:
    """The heartbeat and the last slot that started: each is written, and read, as a whole.

    Not by `struct`, which clears the place before it writes. The other process would see a 0 now and then.

    Args:
        memory: It begins with them.

    Attributes:
        beat: Its only item: the monotonic instant of the last heartbeat.
        last: Its only item: the slot that started last, or -1.
    """

    __slots__ = ("beat", "last")

    def __init__(self, memory: mmap.mmap) -> None:
        view = memoryview(memory)
        self.beat, self.last = view[:8].cast("d"), view[8:16].cast("q")

    def release(self) -> None:
        """Let go of the memory, so that it can be closed."""
        self.beat.release()
        self.last.release()
