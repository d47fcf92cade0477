"""Several answers that are waited for together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Together"]

E = TypeVar("E", bound=Exception)


class Together(Generic[E]):
    """Counts the ends of several items; reports once, with the first error. Safe from any thread.

    Args:
        count: How many are waited for; of none, the report comes at once.
        report: Called once, with the first error or None.
    """

    def __init__(self, count: int, report: Callable[[E | None], None]) -> None:
        self._left, self._report = count, report
        self._error: E | None = None
        self._lock = threading.Lock()
        if not count:
            report(None)

    def ended(self, error: E | None) -> None:
        """One more has ended."""
        with self._lock:
            self._error = self._error or error
            self._left -= 1
            last = self._left == 0
        if last:
            self._report(self._error)
