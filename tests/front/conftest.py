"""Naive clients, closed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.front.client import Front
from tests.front.naive import Naive


@pytest.fixture
def client(front: Front) -> Iterator[Callable[..., Naive]]:
    """Makes naive clients."""
    made: list[Naive] = []

    def make(*args: Any, **options: Any) -> Naive:
        made.append(Naive(front, *args, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def naive(client: Callable[..., Naive]) -> Naive:
    """One with its topic and subscription made."""
    return client().make()
