"""When a task that raised is run again: `RetryPolicy`."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from psq.errors import ConfigError

__all__ = ["RetryPolicy", "type_name"]

#: Most retries: what every storage can count. A message with more can't be read (`psq.message`).
MAX_RETRIES = 2**31 - 1


def type_name(cls: type) -> str:
    """``module:QualName`` of a class, as errors and policies carry it."""
    return f"{cls.__module__}:{cls.__qualname__}"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and after which pause, a task that raised is run again.

    The pause before retry n is ``first * factor ** (n - 1)``, at most `max`, give or take `jitter`.

    Attributes:
        retries: Retries after the first attempt; 0: none, None: no limit.
        first: Seconds before the first retry.
        factor: Each pause is so many times the one before; 1 or more.
        max: Longest pause, seconds.
        jitter: Part of the pause that is random, 0 to 1: 0.1 makes 10 s into 9 to 11.
        on: Retry only these errors and what is derived from them; empty: all. Classes, or names:
            ``module:QualName``, ``module.QualName``, or a builtin's bare name.
        not_on: Never retry these; wins over `on`.
    """

    retries: int | None = 0
    first: float = 1.0
    factor: float = 2.0
    max: float = 3600.0
    jitter: float = 0.1
    on: tuple[str | type, ...] = ()
    not_on: tuple[str | type, ...] = ()

    def __post_init__(self) -> None:
        retries = self.retries
        if retries is not None and (type(retries) is not int or not 0 <= retries <= MAX_RETRIES):
            raise ConfigError(
                f"retries must be a whole number from 0 to {MAX_RETRIES:,}, or None for no limit, not {retries!r}"
            )
        for name, least, most in (("first", 0, 1e9), ("factor", 1, 1e6), ("max", 0, 1e9), ("jitter", 0, 1)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not least <= value <= most:
                raise ConfigError(f"retry.{name} must be a number from {least:g} to {most:g}, not {value!r}")
        for name in ("on", "not_on"):
            value = getattr(self, name)
            if isinstance(value, (str, type)):
                value = (value,)
            if not isinstance(value, (tuple, list)) or not all(_is_error(item) for item in value):
                raise ConfigError(f"retry.{name} must list exception classes or their names, not {value!r}")
            object.__setattr__(self, name, tuple(value))

    def decide(
        self, attempt: int, error: BaseException, *, random: Callable[[], float] = random.random
    ) -> float | None:
        """Seconds until the next attempt, or None to give up. Pure but for the jitter.

        Args:
            attempt: The attempt that ended with `error`, 1 for the first.
            error: What it raised.
            random: Gives a number from 0 to 1.
        """
        if self.retries is not None and attempt > self.retries:
            return None
        if self.on or self.not_on:
            cls = type(error)
            if any(_matches(cls, item) for item in self.not_on):
                return None
            if self.on and not any(_matches(cls, item) for item in self.on):
                return None
        return self.pause(attempt, random=random)

    def pause(self, attempt: int, *, random: Callable[[], float] = random.random) -> float:
        """Seconds between this attempt and the next, whatever the error and the limit."""
        try:
            seconds = min(self.max, self.first * self.factor ** (attempt - 1))
        except OverflowError:
            seconds = self.max
        return seconds * (1 + self.jitter * (2 * random() - 1))

    def merged(self, **changes: Any) -> RetryPolicy:
        """A copy with these keys replaced.

        Raises:
            ConfigError: An unknown key, or a value that is not valid.
        """
        if not changes:
            return self
        unknown = set(changes) - _KEYS
        if unknown:
            raise ConfigError(f"unknown key {min(unknown)!r} in a retry policy; there are {', '.join(sorted(_KEYS))}")
        return replace(self, **changes)

    def to_document(self) -> dict[str, Any]:
        """The keys that differ from the defaults, JSON-able: classes become names.

        What is left out is the queue's own, where the policy is put over a queue's.
        """
        document: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                if isinstance(value, tuple):
                    value = [type_name(item) if isinstance(item, type) else item for item in value]
                document[field.name] = value
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, Any], base: RetryPolicy | None = None) -> RetryPolicy:
        """Put a document over a policy (default: the defaults).

        Raises:
            ConfigError: An unknown key, or a value that is not valid.
        """
        return (base if base is not None else cls()).merged(**document)


_KEYS = frozenset(field.name for field in fields(RetryPolicy))


def _is_error(item: object) -> bool:
    return (isinstance(item, str) and bool(item)) or (isinstance(item, type) and issubclass(item, BaseException))


def _matches(cls: type[BaseException], item: str | type) -> bool:
    if isinstance(item, type):
        return issubclass(cls, item)
    wanted = item if ":" in item or "." in item else f"builtins:{item}"
    return any(wanted in (type_name(base), f"{base.__module__}.{base.__qualname__}") for base in cls.__mro__)
