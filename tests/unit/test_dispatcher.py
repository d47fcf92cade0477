"""Callbacks go through dispatch, many with one hop, none lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from psq.brokers.dispatcher import Dispatcher


def test_without_a_dispatch_a_callback_runs_at_once() -> None:
    ran: list[int] = []
    Dispatcher(lambda: None).post(ran.append, 1)
    assert ran == [1]


def test_what_is_posted_while_a_hop_is_under_way_goes_along_with_it_in_order() -> None:
    hops: list[Callable[[], None]] = []
    ran: list[int] = []
    dispatcher = Dispatcher(lambda: hops.append)
    for number in range(5):
        dispatcher.post(ran.append, number)
    assert len(hops) == 1
    assert ran == []
    hops.pop()()
    assert ran == [0, 1, 2, 3, 4]


def test_what_a_callback_posts_runs_too() -> None:
    hops: list[Callable[[], None]] = []
    ran: list[str] = []
    dispatcher = Dispatcher(lambda: hops.append)

    def first() -> None:
        dispatcher.post(ran.append, "second")

    dispatcher.post(first)
    while hops:
        hops.pop()()
    assert ran == ["second"]
    dispatcher.post(ran.append, "third")
    hops.pop()()
    assert ran == ["second", "third"]


def test_a_callback_that_fails_is_logged_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    ran: list[int] = []
    hops: list[Callable[[], None]] = []
    dispatcher = Dispatcher(lambda: hops.append)

    def fails() -> None:
        raise ValueError("no")

    dispatcher.post(fails)
    dispatcher.post(ran.append, 1)
    hops.pop()()
    assert ran == [1]
    assert "a callback of the broker failed" in caplog.text
