"""USR2: where everything stands, and nothing of what it works with."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.local import local

from psqd.worker.dump import dump_everything
from psqd.worker.trials import Trials
from tests.unit.daemon_standins import daemon

own = local()


def waits_with_a_secret(password: str, gate: Event) -> str:
    own.token = password
    gate.wait()
    return password


@pytest.fixture
def dumped(caplog: pytest.LogCaptureFixture) -> str:
    gate = Event()
    tasks = [gevent.spawn(waits_with_a_secret, "hunter2", gate) for _ in range(3)]
    ended = gevent.spawn(lambda: "hunter2")
    gevent.sleep(0)
    no_leases: Any = None
    made: Any = daemon("default")
    made.runtime = SimpleNamespace(held=[1, 2], trials=Trials(no_leases))
    with caplog.at_level(logging.INFO):
        dump_everything(made)
    gate.set()
    gevent.joinall([*tasks, ended])
    return caplog.text


def test_a_dump_has_the_queues_and_every_stack_once(dumped: str) -> None:
    assert "queue default: running" in dumped
    assert "held: 2 deliveries" in dumped
    assert dumped.count("in waits_with_a_secret") == 1
    assert "3 greenlets" in dumped
    assert "in dumped" in dumped  # the thread that asks


def test_a_dump_has_no_arguments_results_or_locals(dumped: str) -> None:
    assert "hunter2" not in dumped
