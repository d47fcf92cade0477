"""As the first process of a container we inherit every process whose parent ends, and must reap it."""

from __future__ import annotations

import os
from math import inf

__all__ = ["Orphans"]

#: A child that we did not start may be somebody's to wait for, a library's in this process: it has so long, seconds.
PAUSE = 1.0


class Orphans:
    """Reaps what nobody else does; does nothing where another process is the first."""

    def __init__(self) -> None:
        self._first = os.getpid() == 1
        self._at = inf

    def child_ended(self, now: float) -> None:
        """SIGCHLD came."""
        if self._first:
            self._at = min(self._at, now + PAUSE)

    def run(self, now: float, keep: int) -> float:
        """Reap, if it is time.

        Args:
            now: Monotonic.
            keep: The worker's process id: its end has a SIGCHLD of its own; 0 for none.

        Returns:
            Monotonic instant at which it wants to be called again, `inf` for never.
        """
        if now >= self._at:
            self._at = inf
            try:
                while (info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                    if info.si_pid == keep:
                        break
                    os.waitpid(info.si_pid, 0)
            except ChildProcessError:  # no children at all
                pass
        return self._at
