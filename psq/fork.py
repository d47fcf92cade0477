"""What is made anew in a forked child: connections, threads and locks do not survive a fork."""

from __future__ import annotations

import os
from typing import Protocol, TypeVar
from weakref import WeakSet

__all__ = ["Resettable", "reset_after_fork"]


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


def _in_child() -> None:
    for thing in list(_things):
        thing.reset_after_fork()


os.register_at_fork(after_in_child=_in_child)
