"""Functions that a worker can import, and some that it can't."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Iterator
from subprocess import call
from typing import Any

import psq


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: Any = 0
    tags: tuple[str, ...] = ()


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Word(enum.StrEnum):
    YES = "yes"


class NotFoundError(LookupError):
    def __init__(self, what: str, *, code: int) -> None:
        super().__init__(f"{what} ({code})")
        self.code = code


seen: list[Any] = []


def adder(a: Any, b: Any = 0) -> Any:
    return a + b


def echo(*args: Any, **kwargs: Any) -> Any:
    return [list(args), kwargs]


def returns(value: Any) -> Any:
    return value


def look(*_: Any) -> dict[str, Any]:
    task = psq.current_task
    return {"id": task.id, "attempt": task.attempt, "queue": psq.current_queue.name, "retries": task.retries}


def fails(text: str = "no") -> None:
    raise ValueError(text)


def fails_in_its_own_way(text: str) -> None:
    raise NotFoundError(text, code=404)


def exits() -> None:
    raise SystemExit(3)


def again(until: int) -> int:
    if psq.current_task.attempt < until:
        raise psq.Retry
    return psq.current_task.attempt


def always_again() -> None:
    raise psq.Retry("still not")


def spoils(values: list[int]) -> int:
    values.append(psq.current_task.attempt)
    if psq.current_task.attempt < 3:
        raise psq.Retry
    return len(values)


def enqueues(value: int) -> str:
    return psq.current_queue.enqueue(adder, value, 1).id


def enqueues_itself() -> None:
    psq.current_queue.enqueue(enqueues_itself)


def unsendable() -> Any:
    return object()


@psq.task(retries=3, publish_timeout=2.5)
def decorated(a: int, b: int) -> int:
    return a + b


@psq.task
def plain(a: int) -> int:
    return a


@psq.task(retries=2)
def flaky(succeeds_at: int) -> int:
    if psq.current_task.attempt < succeeds_at:
        raise ConnectionError("not yet")
    return psq.current_task.attempt


def _wrapping(f: Any) -> Any:
    @functools.wraps(f)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return ("wrapped", f(*args, **kwargs))

    return wrapper


@_wrapping
def wrapped(a: int) -> int:
    return a


@_wrapping
@psq.task
def wrapped_task(a: int) -> int:
    return a


def _careless(f: Any) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs)

    return wrapper


@_careless
def carelessly_wrapped() -> None: ...


@functools.lru_cache
def cached(a: int) -> int:
    return a


def _private() -> None: ...


def overwritten() -> None: ...


first_of_its_name = overwritten
overwritten = 5  # type: ignore[assignment]


def removed() -> None: ...


gone = removed
del removed


async def asynchronous() -> None: ...


def generates() -> Iterator[int]:
    yield 1


class Holder:
    def method(self) -> None: ...

    @staticmethod
    def static() -> None: ...

    @classmethod
    def of_class(cls) -> None: ...


__all__ = ["call"]
