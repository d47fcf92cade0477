"""How long the hub stood still since an instant."""

from __future__ import annotations

import pytest

from psqd.worker import stall as module
from psqd.worker.stall import BEAT, Stall


class Clock:
    """A monotonic clock that tests turn."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_700_000_000.0 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(module, "time", fake)
    return fake


def test_a_hub_that_turns_is_not_blocked(clock: Clock) -> None:
    beats: list[float] = []
    stall = Stall(lambda: None, beats.append)
    for _ in range(8):
        clock.now += BEAT
        stall.step()
    assert len(beats) == 8
    assert stall.blocked_since(1000.0) == 0.0
    assert stall.blocks == 0


def test_a_stall_counts_for_what_was_out_while_it_lasted(clock: Clock) -> None:
    stall = Stall(lambda: None, lambda now: None)
    clock.now += 10
    stall.step()  # timers run before the callbacks of what arrived meanwhile
    assert stall.blocked_since(999.0) == pytest.approx(10.0)
    assert stall.blocked_since(1004.0) == pytest.approx(6.0)
    assert stall.blocked_since(1010.0) == 0.0
    assert stall.blocks == 1
    assert stall.longest == pytest.approx(10 - BEAT)


def test_a_stall_that_still_lasts_counts_too(clock: Clock) -> None:
    stall = Stall(lambda: None, lambda now: None)
    clock.now += 7
    assert stall.blocked_since(1000.0) == pytest.approx(7 - BEAT)
    assert stall.blocked_since(1006.0) == pytest.approx(1 - BEAT)


def test_old_stalls_are_forgotten(clock: Clock) -> None:
    stall = Stall(lambda: None, lambda now: None)
    clock.now += 5
    stall.step()
    clock.now += module.MEMORY + 1
    stall.step()
    clock.now += BEAT
    stall.step()
    assert len(stall._stalls) == 1


def test_an_error_in_what_is_done_at_a_beat_neither_stops_the_beats_nor_looks_like_a_stall(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    beats: list[None] = []

    def broken(now: float) -> None:
        raise RuntimeError("a bug")

    stall = Stall(lambda: beats.append(None), broken)
    for _ in range(8):
        clock.now += BEAT
        stall.step()
    assert len(beats) == 8
    assert stall.blocks == 0
    assert stall.last_error == "RuntimeError: a bug"
    assert caplog.text.count("RuntimeError: a bug") == 1


def test_a_task_that_kept_the_hub_is_told_when_it_ends_and_those_that_end_right_after_it_are_not(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    stall = Stall(lambda: None, lambda now: None)
    clock.now += 60
    assert stall.kept() == 0.0  # nothing beats yet
    stall.step()
    clock.now += BEAT + module.TELL + 2
    assert stall.kept() == pytest.approx(module.TELL + 2)
    clock.now += 0.5
    assert stall.kept() == 0.0
    stall.step()
    assert caplog.text == ""  # whoever asked has told it
    assert stall.blocks == 2


def test_a_stall_that_nobody_has_told_is_told_at_its_end(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    stall = Stall(lambda: None, lambda now: None)
    clock.now += 60
    stall.step()
    assert caplog.text == ""  # it began
    clock.now += 5 + BEAT
    stall.step()
    assert "the hub stood still for 5.0 s" in caplog.text
