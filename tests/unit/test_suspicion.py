"""A connection is stuck when it seems so three ticks in a row: a hub that stood still looks the same at first."""

from __future__ import annotations

import pytest

from psq.google import suspicion as module
from psq.google.suspicion import TICKS_APART, Suspicion
from tests.unit.datastore_server import Server, storage_on
from tests.unit.test_datastore_commit import put, record


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ticks(suspicion: Suspicion, clock: Clock, *found: bool, apart: float = 1.0) -> list[bool]:
    result = []
    for one in found:
        clock.now += apart
        result.append(suspicion.confirmed(one))
    return result


def test_the_third_in_a_row_counts_and_then_it_begins_anew(clock: Clock) -> None:
    assert ticks(Suspicion(clock), clock, *[True] * 7) == [False, False, True, False, False, True, False]


def test_a_tick_that_finds_nothing_ends_the_row(clock: Clock) -> None:
    assert not any(ticks(Suspicion(clock), clock, *[True, True, False] * 3))


def test_ticks_of_a_hub_that_stands_still_again_and_again_are_no_row(clock: Clock) -> None:
    assert not any(ticks(Suspicion(clock), clock, *[True] * 9, apart=TICKS_APART))


def test_a_storage_makes_its_channel_anew_when_calls_outlive_their_timeouts_at_three_looks_in_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LEAST_APART", 0.0)
    server = Server()
    storage = storage_on(server)
    put(storage, record("t"))[0].get()
    server.late = 2
    storage.tick()  # the hub stood still: their callbacks run in a moment
    server.late = 0
    storage.tick()
    assert server.renewed == []
    server.late = 2
    for _ in range(3):
        storage.tick()
    assert len(server.renewed) == 1


def test_many_who_tick_at_a_time_are_one() -> None:
    """Fifty callers that wait for their answers while the hub stands still, and all wake after it."""
    clock = Clock()
    suspicion = Suspicion(clock)
    assert not any(ticks(suspicion, clock, *[True] * 50, apart=0.001))
    assert not any(ticks(suspicion, clock, False))
    assert not any(ticks(suspicion, clock, *[True] * 2))
