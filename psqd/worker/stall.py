"""The hub's heartbeat, and how long it last stood still."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from math import inf

from psqd.worker.service import Service

__all__ = ["BEAT", "Stall"]

#: Seconds between heartbeats.
BEAT = 0.25
#: A task, or anything else, that keeps the hub for so long is told of, seconds.
TELL = 1.0
#: A gap this much longer than a beat counts as "the hub stood still", seconds.
NOTICEABLE = 0.5
#: Seconds for which a stall is remembered: longer than any pull is out.
MEMORY = 1800.0
#: Seconds between two log lines about errors of what is done at each beat.
TELL_PAUSE = 30.0

log = logging.getLogger("psqd")


class Stall(Service):
    """Beats for the keeper, and remembers when the hub did not turn.

    Attributes:
        blocks: How often the hub stood still for more than half a second.
        blocked_seconds: All of it together.
        longest: The longest, seconds.
        last_at: Unix time of the last, 0.0 for none.
    """

    interval = BEAT

    def __init__(self, beat: Callable[[], None], on_beat: Callable[[float], None]) -> None:
        super().__init__("heartbeat")
        self._beat, self._on_beat = beat, on_beat
        self._last = time.monotonic()
        self._told = inf  # until then all stalls are told; inf before the first beat
        self._tell_at = 0.0
        self._stalls: deque[tuple[float, float]] = deque()  # (began, ended), monotonic
        self.blocks, self.blocked_seconds, self.longest, self.last_at = 0, 0.0, 0.0, 0.0

    def step(self) -> None:
        """One beat."""
        now = time.monotonic()
        gap = now - self._last - BEAT
        if now - max(self._last, self._told) - BEAT > TELL:
            log.warning("the hub stood still for %.1f s: no task, no message and no timer could go on", gap)
        if gap > NOTICEABLE:
            self._stalls.append((self._last, now))
            self.blocks += 1
            self.blocked_seconds += gap
            self.longest = max(self.longest, gap)
            self.last_at = time.time()
        while self._stalls and now - self._stalls[0][1] > MEMORY:
            self._stalls.popleft()
        self._last = self._told = now
        self._beat()
        try:
            self._on_beat(now)
        except Exception as error:  # the pause after a step that failed would look like a hub that stands still
            self.last_error = f"{type(error).__name__}: {error}"
            if now >= self._tell_at:
                self._tell_at = now + TELL_PAUSE
                log.exception("an error in what is done at each heartbeat")

    @property
    def last(self) -> float:
        """Monotonic instant of the last heartbeat, `inf` while there are to be none. For any thread."""
        return self._last if self.alive else inf

    def kept(self) -> float:
        """Asked when a task has ended: the seconds for which it has kept the hub till now, 0.0 for less than `TELL`."""
        now = time.monotonic()
        seconds = now - max(self._last, self._told) - BEAT
        if seconds < TELL:
            return 0.0
        self._told = now  # by whoever asks: what ends after it, before the next heartbeat, has kept nobody
        return seconds

    def blocked_since(self, instant: float) -> float:
        """The longest stall that overlaps the time since a monotonic instant, in seconds.

        A pull that was sent then had its leases run unkept for as long.
        """
        now = time.monotonic()
        longest = max(0.0, now - max(self._last, instant) - BEAT)
        for began, ended in self._stalls:
            if ended > instant:
                longest = max(longest, ended - max(began, instant))
        return longest
