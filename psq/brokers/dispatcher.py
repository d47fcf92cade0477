"""Hands finished calls to whoever waits, through a broker's `dispatch`: one hop for many."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Dispatcher"]

log = logging.getLogger("psq")


class Dispatcher:
    """Runs callbacks through a dispatch function, or at once where there is none.

    What is posted while a hop is under way goes along with it: a batch of acks costs one hop.

    Args:
        dispatch: Gives the function of now, or None.
    """

    def __init__(self, dispatch: Callable[[], Callable[[Callable[[], None]], None] | None]) -> None:
        self._dispatch = dispatch
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._under_way = False

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function soon. Never blocks, never raises; safe from any thread."""
        dispatch = self._dispatch()
        if dispatch is None:
            _run(function, args)
            return
        self._posted.append((function, args))
        if not self._under_way:  # set to False before the queue is emptied: nothing is left behind
            self._under_way = True
            dispatch(self._drain)

    def _drain(self) -> None:
        self._under_way = False
        posted = self._posted
        while posted:
            try:
                function, args = posted.popleft()
            except IndexError:  # somebody else's hop took it
                return
            _run(function, args)


def _run(function: Callable[..., None], args: tuple[Any, ...]) -> None:
    try:
        function(*args)
    except Exception:
        log.exception("a callback of the broker failed")
