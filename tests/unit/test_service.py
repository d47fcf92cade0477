"""A service's greenlet: started and stopped at any time, and again after an error."""

from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest
from gevent.event import Event

from psqd.worker import service as module
from psqd.worker.service import Service


class Steps(Service):
    """Counts its steps; raises, or waits, as the test says."""

    interval = 0.001

    def __init__(self) -> None:
        super().__init__("steps")
        self.count = 0
        self.errors: list[Exception] = []
        self.gate: Event | None = None

    def step(self) -> None:
        self.count += 1
        if self.errors:
            raise self.errors.pop()
        if self.gate is not None:
            self.gate.wait()


def wait_for(condition: Callable[[], bool]) -> None:
    with gevent.Timeout(5):
        while not condition():
            gevent.sleep(0.001)


def test_it_steps_until_it_is_stopped_and_can_be_started_again() -> None:
    service = Steps()
    service.stop()
    for _ in range(2):
        before = service.count
        service.start()
        service.start()
        wait_for(lambda before=before: service.count >= before + 3)  # type: ignore[misc]
        assert service.alive
        service.stop()
        service.stop()
        assert not service.alive
    count = service.count
    gevent.sleep(0.01)
    assert service.count == count


def test_starting_twice_makes_one_greenlet() -> None:
    service = Steps()
    service.gate = Event()
    service.start()
    service.start()
    gevent.sleep(0.01)
    assert service.count == 1
    service.gate.set()
    service.stop()


def test_an_error_is_told_and_the_service_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    service = Steps()
    service.errors = [ValueError("second"), ValueError("first")]
    service.start()
    wait_for(lambda: service.count >= 4)
    service.stop()
    assert service.restarts == 2
    assert service.last_error == "ValueError: second"
    assert caplog.text.count("steps failed") == 2


def test_a_stop_ends_a_pause_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 600.0)
    service = Steps()
    service.errors = [ValueError("bad")]
    service.start()
    wait_for(lambda: service.restarts == 1)
    with gevent.Timeout(5):
        service.stop(timeout=600.0)
    assert not service.alive


def test_a_step_that_does_not_end_is_ended_by_force() -> None:
    service = Steps()
    service.gate = Event()
    service.start()
    wait_for(lambda: service.count == 1)
    greenlet = service._greenlet
    assert greenlet is not None
    service.stop(timeout=0.01)
    greenlet.join(5)
    assert greenlet.dead
