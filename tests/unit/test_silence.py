"""When a call that nobody answered means that its connection is dead."""

from __future__ import annotations

from collections.abc import Callable

from psq.google.silence import LATE, LOOK, PAUSE, TELLING, Silence


class World:
    """A clock, a server that was heard at some time, and a channel that is made anew."""

    def __init__(self) -> None:
        self.now, self.heard_at = 1000.0, 990.0
        self.renewed: list[str] = []
        self._due: list[tuple[float, Callable[[], None]]] = []
        self.silence = Silence(
            lambda: self.heard_at,
            self.renewed.append,
            clock=lambda: self.now,
            later=lambda seconds, function: self._due.append((self.now + seconds, function)),
        )

    def unanswered(self, timeout: float = TELLING, late: float = 0.0) -> None:
        began, self.now = self.now, self.now + timeout + late
        self.silence.unanswered(began, timeout)

    def passes(self, seconds: float) -> None:
        self.now += seconds
        due, self._due = self._due, []
        for at, function in due:
            assert at <= self.now
            function()


def test_one_call_without_an_answer_while_nothing_else_is_heard_is_enough() -> None:
    world = World()
    world.unanswered()
    assert world.renewed == []  # an answer may have come already, and its callback not have run
    world.passes(LOOK)
    assert world.renewed == ["no answer for 3 s"]


def test_anything_heard_since_the_call_began_shows_that_the_connection_lives() -> None:
    world = World()
    world.heard_at = world.now + 1.0
    world.unanswered()
    world.passes(LOOK)
    assert world.renewed == []


def test_an_answer_that_was_there_and_not_seen_yet_counts() -> None:
    world = World()
    world.unanswered()
    world.heard_at = world.now
    world.passes(LOOK)
    assert world.renewed == []
    world.unanswered()  # and the next silence is told at once
    world.passes(LOOK)
    assert len(world.renewed) == 1


def test_short_timeouts_and_a_process_that_stood_still_tell_nothing() -> None:
    world = World()
    world.unanswered(TELLING - 0.1)
    world.unanswered(TELLING, late=LATE + 0.1)
    world.passes(LOOK)
    assert world.renewed == []


def test_a_server_that_is_down_does_not_have_its_channel_made_anew_by_each_call() -> None:
    world = World()
    for _ in range(3):
        world.unanswered()
        world.passes(LOOK)
    assert len(world.renewed) == 1
    world.passes(PAUSE)
    world.unanswered()
    world.passes(LOOK)
    assert len(world.renewed) == 2
