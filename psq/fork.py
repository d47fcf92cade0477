"""Forks: what must happen before one, and what is made anew in the child.

Connections, threads and locks do not survive a fork.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Protocol, TypeVar
from weakref import WeakSet

__all__ = ["Resettable", "around_fork", "reset_after_fork"]

log = logging.getLogger("psq")


class Resettable(Protocol):
    """Something that holds what a fork breaks."""

    def reset_after_fork(self) -> None:
        """Forget it, without touching it: the parent still uses the same descriptors. Must not block."""


T = TypeVar("T", bound=Resettable)

_things: WeakSet[Resettable] = WeakSet()


def reset_after_fork(thing: T) -> T:
    """Let ``thing.reset_after_fork()`` be called in every child that is forked from now on. Idempotent."""
    _things.add(thing)
    return thing


def around_fork(
    *, before: Callable[[], None], after_in_parent: Callable[[], None], after_in_child: Callable[[], None]
) -> None:
    """As `os.register_at_fork`, but that `before` is called as one of the last.

    For what takes locks and waits for nobody: Python calls first what was registered last, and that may wait
    (`psq.google.rest` does), while others run who need the locks.
    """
    _locks.append(before)
    os.register_at_fork(after_in_parent=after_in_parent, after_in_child=after_in_child)


_locks: list[Callable[[], None]] = []


def _before() -> None:
    for function in _locks:
        try:
            function()
        except Exception:  # the others must not be left out
            log.exception("what must happen before a fork failed")


def _in_child() -> None:
    for thing in list(_things):
        thing.reset_after_fork()


os.register_at_fork(before=_before, after_in_child=_in_child)
