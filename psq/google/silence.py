"""A connection that looks well and answers nothing: told by the first call that ends at its own timeout.

gRPC's keepalive finds it after 51 s. That is longer than a lease, and five
enqueues one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from psq.concurrency import call_later

__all__ = ["Silence"]

#: Shortest timeout that tells something, seconds: the keeper's first try for a lease of 10 s has 3.3.
TELLING = 3.0
#: A call that ends so much later than at its timeout tells of this process, which stood still, seconds.
LATE = 1.0
#: Before the verdict, answers that have come already are seen for so long, seconds.
LOOK = 0.25
#: Least seconds between two verdicts.
PAUSE = 20.0


class Silence:
    """Watches the calls of a channel that end without an answer.

    Args:
        heard_at: Gives the monotonic instant of the server's last sign of life.
        renew: Makes the channel anew; gets the reason.
        clock: Monotonic seconds.
        later: ``later(seconds, function)`` calls a function after a pause.
    """

    def __init__(
        self,
        heard_at: Callable[[], float],
        renew: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], object] = call_later,
    ) -> None:
        self._heard_at, self._renew, self._clock, self._later = heard_at, renew, clock, later
        self._not_before = 0.0

    def unanswered(self, began: float, timeout: float) -> None:
        """A call that the server should have answered ended at its own timeout, on a connection that is there.

        Args:
            began: Monotonic instant of its start.
            timeout: Its seconds.
        """
        now = self._clock()
        if timeout < TELLING or now - began - timeout > LATE or now < self._not_before or self._heard_at() >= began:
            return
        self._not_before = now + PAUSE

        def look() -> None:
            if self._heard_at() < began:
                self._renew(f"no answer for {timeout:.0f} s")
            else:
                self._not_before = 0.0

        self._later(LOOK, look)
