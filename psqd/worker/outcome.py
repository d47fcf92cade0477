"""How a delivery ends: one class for each row of the executor's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Dead", "Failed", "Finished", "Hold", "Interrupted", "Later", "Outcome", "Retried"]


@dataclass(slots=True, frozen=True)
class Finished:
    """It returned a value. `dumped`: in a process of its own, which sent the value as it is stored."""

    value: Any
    dumped: bytes | None = None


@dataclass(slots=True, frozen=True)
class Failed:
    """It raised, and is not tried again. `out_of_retries`: it had been, so it is a dead letter too."""

    error: Mapping[str, Any]
    out_of_retries: bool = False


@dataclass(slots=True, frozen=True)
class Retried:
    """It runs again after `delay` seconds, as the next attempt."""

    delay: float
    error: Mapping[str, Any]


@dataclass(slots=True, frozen=True)
class Dead:
    """It can't be run: kept with its payload."""

    reason: str
    error: str = ""
    traceback: str = ""
    deaths: Sequence[Mapping[str, Any]] = ()


@dataclass(slots=True, frozen=True)
class Later:
    """It is not due for `seconds` yet."""

    seconds: float


@dataclass(slots=True, frozen=True)
class Hold:
    """It can't run here right now: it comes again after `seconds`, to anybody. `unknown`: its function is."""

    seconds: float
    why: str
    unknown: bool = False


@dataclass(slots=True, frozen=True)
class Interrupted:
    """The worker stops: it is given back, and no attempt is used up."""


Outcome = Finished | Failed | Retried | Dead | Later | Hold | Interrupted
