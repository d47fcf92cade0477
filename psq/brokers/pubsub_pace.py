"""How much a receiver asks for, and when again: from what its pulls brought."""

from __future__ import annotations

import random

from psq.google.errors import CallError

__all__ = ["FIRST_PAUSE", "LONGEST_PAUSE", "MAX_MESSAGES", "Pace"]

#: Most messages of one pull.
MAX_MESSAGES = 1000
#: Seconds before a pull that failed is repeated; doubled up to the longest, with jitter.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 10.0
#: A long poll that is answered with nothing sooner than this tells that the server does not hold polls, seconds.
TOO_SOON = 0.5
#: After that many in a row there is a pause before the next.
SOON_IN_A_ROW = 2


class Pace:
    """The numbers of one receiver; whoever has its lock.

    Attributes:
        busy: The last answer brought messages.
    """

    __slots__ = ("_failures", "_mean", "_most", "_soon", "busy")

    def __init__(self) -> None:
        self.busy = False
        self._mean = 0.0  # messages of an answer that brings some
        self._most = MAX_MESSAGES  # less after RESOURCE_EXHAUSTED
        self._soon = 0  # long polls in a row that were answered with nothing, and at once
        self._failures = 0  # in a row

    def worth_another(self, room: int) -> bool:
        """Whether there is room for the mean answer of one more pull beside the long poll."""
        return room >= min(self._mean, MAX_MESSAGES)

    def share(self, room: int, want: int, pulls: int) -> int:
        """How many messages the next pull asks for.

        Args:
            room: What is wanted and no pull in flight asks for.
            want: What is wanted.
            pulls: Most pulls at a time.
        """
        # Alone, it takes all there is room for. Among others each takes a share, so that they go side by side.
        share = max(2 * self._mean, want // pulls, 1) if self.busy else room
        return min(room, int(share), self._most)

    def brought(self, count: int) -> None:
        """An answer brought so many messages, at least one."""
        self._soon, self.busy = 0, True
        self._mean = float(count) if count > self._mean else self._mean * 0.75 + count * 0.25
        self._most = min(MAX_MESSAGES, self._most * 2)

    def poll_was_empty(self, after: float, poll: float) -> float:
        """A long poll was answered with nothing: the pause before the next, seconds.

        Args:
            after: Seconds from its sending to the answer.
            poll: Seconds that it was to wait.
        """
        self._soon = self._soon + 1 if after < min(TOO_SOON, poll / 2) else 0
        if self._soon <= SOON_IN_A_ROW:
            return 0.0
        return min(1.0, FIRST_PAUSE * 2.0 ** min(self._soon - SOON_IN_A_ROW, 10))

    def refused(self, asked: int) -> None:
        """RESOURCE_EXHAUSTED, for a pull that asked for so many messages."""
        self._most = max(1, min(self._most, asked) // 2)

    def failed(self, error: CallError) -> float:
        """A pull failed: the pause before it is repeated, seconds."""
        pause = FIRST_PAUSE * 2.0 ** min(self._failures, 10)
        self._failures += 1
        if not error.transient:
            pause = LONGEST_PAUSE  # it has to be mended by somebody
        return min(LONGEST_PAUSE, pause) * (random.uniform(0.8, 1.2) if self._failures > 1 else 1.0)

    def answered(self) -> None:
        """The server gave a sign of life."""
        self._failures = 0
