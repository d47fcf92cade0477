"""Tasks for the worker's unit tests."""

from __future__ import annotations

import sys
from typing import Any

import gevent

import psq
from psq.errors import TaskInterrupted


def add(a: int, b: int) -> int:
    return a + b


def fail(text: str = "bad") -> None:
    raise ValueError(text)


def again(delay: float | None = None) -> None:
    raise psq.Retry(delay=delay)


def leave() -> None:
    sys.exit(1)


def stopped() -> None:
    raise TaskInterrupted


def unsayable() -> Any:
    return object()


def attempt() -> int:
    return psq.current_task.attempt


def sleep(seconds: float) -> str:
    gevent.sleep(seconds)
    return "slept"


@psq.task(retry={"first": 0.5})
def fails_soon() -> None:
    raise ValueError("soon")


@psq.task(retry={"retries": 1})
def fails_once_more() -> None:
    raise ValueError("once more")


@psq.task(retry={"first": 0.5})
def again_soon() -> None:
    raise psq.Retry


@psq.task(retry={"retries": 1})
def again_once_more() -> None:
    raise psq.Retry
