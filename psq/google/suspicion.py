"""Is the connection stuck, or did only the hub stand still?"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Suspicion"]

#: Ticks in a row, each within so many seconds of the last, at which the connection seems stuck before it is.
TIMES, TICKS_APART = 3, 3.0
#: Ticks closer together than this are one, seconds: each caller that waits for an answer ticks once a second, too.
LEAST_APART = 0.5


class Suspicion:
    """Counts ticks in a row. A hub that stood still looks stuck at first: its callbacks have not run yet.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._times = 0

    def confirmed(self, suspicious: object) -> bool:
        """True at the third suspicious tick in a row; then it begins anew.

        Args:
            suspicious: What was found at this tick, true where the connection seems stuck.
        """
        now = self._clock()
        if suspicious and self._times and now - self._at < LEAST_APART:
            return False
        in_a_row = now - self._at < TICKS_APART
        self._at = now
        self._times = (self._times if in_a_row else 0) + 1 if suspicious else 0
        if self._times < TIMES:
            return False
        self._times = 0
        return True
