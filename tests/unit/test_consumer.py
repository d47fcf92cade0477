"""Never more leased than can start soon; what can't start is given back; what came in a stall is not run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from psq.brokers.base import Delivery, QueueSpec, Receiver
from psq.errors import BrokerRefused, BrokerUnavailable
from psq.message import Message, encode
from psqd.worker import consumer as module
from psqd.worker import steps
from psqd.worker.consumer import PATIENCE, Consumer
from tests.unit.worker_fakes import Bench


class FakeReceiver(Receiver):
    """Remembers what it was asked for."""

    def __init__(self, deliver: Callable[[list[Delivery]], None]) -> None:
        self.deliver = deliver
        self.asked: list[int] = []
        self.started = False
        self.stats = {}
        self.on_stopped: Callable[[], None] | None = None

    def start(self) -> None:
        self.started = True

    def ask(self, n: int) -> None:
        self.asked.append(n)

    def stop(self, grace: float, stopped: Callable[[], None]) -> None:
        self.on_stopped = stopped


class Place:
    """A consumer on a faked broker."""

    def __init__(self, **settings: Any) -> None:
        self.bench = Bench(storage=False, **settings)
        self.receivers: list[FakeReceiver] = []
        self.problems: list[Exception] = []
        outside: Any = self.bench.outside
        outside.declare = self._declare
        outside.receiver = self._receiver
        self.active: set[Consumer] = set()
        self.consumer = Consumer(
            "q", self.bench.config, self.bench.spec, self.bench.runtime, self.bench.invocation, self.active
        )

    def _declare(self, spec: QueueSpec) -> list[str]:
        if self.problems:
            raise self.problems.pop(0)
        return []

    def _receiver(self, spec: QueueSpec, deliver: Callable[[list[Delivery]], None]) -> FakeReceiver:
        self.receivers.append(FakeReceiver(deliver))
        return self.receivers[-1]

    def start(self) -> FakeReceiver:
        self.consumer.start()
        self.consumer.declared.wait()
        gevent.sleep(0)
        return self.receivers[-1]

    def deliveries(self, count: int, function: str = "add", args: tuple[Any, ...] = (1, 2)) -> list[Delivery]:
        now = time.monotonic()
        data = encode(Message("id", f"tests.unit.worker_tasks:{function}", list(args), {}, "q"))
        return [Delivery(self.bench.spec, f"k{n}", data, {}, now, now + 10, None) for n in range(count)]


def settle() -> None:
    gevent.idle()
    gevent.sleep(0)


def test_it_asks_for_as_many_as_it_has_slots_and_for_less_while_they_are_busy() -> None:
    place = Place(concurrency=10)
    receiver = place.start()
    assert receiver.asked[-1] == 10
    receiver.deliver(place.deliveries(4, "sleep", (60,)))
    settle()
    assert place.consumer.running == 4
    assert receiver.asked[-1] == 6


def test_prefetch_follows_what_ends_within_a_second() -> None:
    place = Place(concurrency=2)
    receiver = place.start()
    for _ in range(3):
        receiver.deliver(place.deliveries(10))
        settle()
        place.consumer.beat(time.monotonic())
    assert receiver.asked[-1] == 2 + 30
    for _ in range(4):
        place.consumer.beat(time.monotonic())
    assert receiver.asked[-1] == 2  # it was told, too: else it would lease 30 that nobody can start


def test_prefetch_of_all_queues_together_is_bounded_by_bytes() -> None:
    place, other = Place(concurrency=2), Place(concurrency=2)
    asked = []
    for one in (place, other):
        one.bench.runtime.max_prefetch_bytes = 4000
        receiver = one.start()
        for _ in range(2):
            receiver.deliver(one.deliveries(100))
            settle()
    for _ in range(2):  # as the daemon's beat does
        wanted = place.consumer.prefetch_bytes() + other.consumer.prefetch_bytes()
        for one in (place, other):
            one.bench.runtime.share_prefetch(wanted)
            one.consumer.beat(time.monotonic())
    for one in (place, other):
        prefetch = one.receivers[0].asked[-1] - 2
        assert 0 < prefetch < 100
        asked.append(prefetch * one.consumer._mean_bytes)
    assert 3000 < sum(asked) <= 4000


def test_what_waits_too_long_for_a_slot_is_given_back() -> None:
    place = Place(concurrency=1)
    receiver = place.start()
    receiver.deliver(place.deliveries(3, "sleep", (60,)))
    settle()
    now = time.monotonic()
    place.consumer.beat(now + PATIENCE - 0.5)
    assert place.bench.outside.names() == []
    place.consumer.beat(now + PATIENCE + 0.5)
    assert [(name, len(what)) for name, what in place.bench.outside.calls] == [("nack", 2)]
    assert place.consumer.running == 1
    assert place.consumer.prefetched == 0
    assert receiver.asked[-1] == 0


def test_what_came_while_the_hub_stood_still_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(concurrency=5)
    receiver = place.start()
    monkeypatch.setattr(place.bench.stall, "blocked_since", lambda instant: 5.1)
    receiver.deliver(place.deliveries(3))
    settle()
    assert place.bench.outside.names() == ["nack"]
    monkeypatch.setattr(place.bench.stall, "blocked_since", lambda instant: 4.9)
    receiver.deliver(place.deliveries(3))
    settle()
    assert place.bench.outside.names() == ["nack", "ack", "ack", "ack"]


def test_what_counts_in_a_stall_is_the_lease_that_the_subscription_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(concurrency=5, ack_deadline=60)
    receiver = place.start()
    monkeypatch.setattr(place.bench.stall, "blocked_since", lambda instant: 6.0)
    receiver.deliver(place.deliveries(3))  # an operator's subscription of 10 s
    settle()
    assert place.bench.outside.names() == ["nack"]


def test_pausing_gives_back_what_waits_and_what_still_comes_and_lets_run_what_runs() -> None:
    place = Place(concurrency=1)
    receiver = place.start()
    receiver.deliver(place.deliveries(2, "sleep", (0.05,)))
    settle()
    stopped = place.consumer.pause()
    assert [(name, len(what)) for name, what in place.bench.outside.calls] == [("nack", 1)]
    receiver.deliver(place.deliveries(4))
    assert len(place.bench.outside.calls[-1][1]) == 4
    assert not stopped.is_set()
    assert receiver.on_stopped is not None
    receiver.on_stopped()
    assert stopped.is_set()
    place.consumer.ended.wait()
    assert place.bench.outside.names() == ["nack", "nack", "ack"]
    place.consumer.start()
    settle()
    assert len(place.receivers) == 2


def test_a_drained_consumer_is_idle_when_the_last_task_has_ended() -> None:
    place = Place(concurrency=2)
    receiver = place.start()
    receiver.deliver(place.deliveries(2, "sleep", (0.05,)))
    settle()
    place.consumer.drain()
    assert receiver.on_stopped is not None
    receiver.on_stopped()
    settle()
    assert not place.consumer.idle.is_set()
    place.consumer.idle.wait()
    assert place.consumer.running == 0


def test_a_queue_that_is_added_again_while_it_drains_is_adopted() -> None:
    place = Place(concurrency=2)
    receiver = place.start()
    receiver.deliver(place.deliveries(1, "sleep", (0.05,)))
    settle()
    place.consumer.drain()
    place.consumer.adopt(place.bench.config, place.bench.invocation)
    place.consumer.start()
    assert receiver.on_stopped is not None
    receiver.on_stopped()
    settle()
    assert place.consumer.state == "running"
    assert len(place.receivers) == 2
    while place.consumer.running:
        gevent.sleep(0.005)
    settle()
    assert not place.consumer.idle.is_set()
    assert place.bench.outside.names() == ["ack"]


def test_it_waits_for_a_broker_that_is_away_and_says_so_and_when_that_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    place = Place()
    place.problems = [BrokerUnavailable("away"), BrokerUnavailable("away")]
    place.consumer.start()
    place.consumer.declared.wait()
    assert "can't be reached" in place.consumer.problem
    with gevent.Timeout(5):
        while place.consumer.state != "running":
            gevent.sleep(0.005)
    assert place.consumer.problem == ""
    assert place.receivers[0].started
    told = [record.getMessage() for record in caplog.records]
    assert told == ["queue q waits for the broker: away", "queue q is served now"]


def test_a_broker_that_refuses_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    place = Place()
    place.problems = [BrokerRefused("no permission")]
    place.consumer.start()
    place.consumer.declared.wait()
    assert str(place.consumer.refused) == "no permission"
    with gevent.Timeout(5):
        while place.consumer.state != "running":
            gevent.sleep(0.005)
    assert place.consumer.refused is None


def test_resizing_stops_nothing() -> None:
    place = Place(concurrency=1)
    receiver = place.start()
    receiver.deliver(place.deliveries(3, "sleep", (60,)))
    settle()
    config = place.bench.config.model_copy(update={"concurrency": 3})
    place.consumer.configure(config, place.bench.invocation)
    settle()
    assert place.consumer.running == 3
    assert place.bench.outside.names() == []


def test_a_queue_that_is_paused_before_it_was_declared_counts_as_looked_at() -> None:
    place = Place()
    place.consumer.start()
    place.consumer.pause()
    with gevent.Timeout(5):
        place.consumer.declared.wait()
    assert place.receivers == []


def test_pausing_and_going_on_again_and_again_while_the_broker_is_away_declares_once_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    place = Place()
    place.problems = [BrokerUnavailable("away")] * 40
    for _ in range(10):
        place.consumer.start()
        gevent.sleep(0)
        place.consumer.pause()
    place.consumer.start()
    settle()
    left = len(place.problems)
    gevent.sleep(0.015)
    assert left - len(place.problems) <= 2


def test_a_receiver_that_can_not_be_made_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    place = Place()
    outside: Any = place.bench.outside
    real = outside.receiver

    def broken(*args: Any) -> None:
        outside.receiver = real
        raise RuntimeError("a bug of the broker")

    outside.receiver = broken
    place.consumer.start()
    place.consumer.declared.wait()
    assert "a bug of the broker" in place.consumer.problem
    with gevent.Timeout(5):
        while place.consumer.state != "running":
            gevent.sleep(0.005)
    assert place.consumer.problem == ""


def test_a_drain_right_after_a_pause_waits_for_the_pulls_that_are_still_out() -> None:
    place = Place()
    receiver = place.start()
    paused = place.consumer.pause()
    drained = place.consumer.drain()
    assert not paused.is_set()
    assert not drained.is_set()
    assert receiver.on_stopped is not None
    receiver.on_stopped()
    assert drained.is_set()
    settle()
    assert place.consumer.idle.is_set()


def test_whoever_waits_for_the_end_of_a_drain_is_let_go_when_it_is_adopted() -> None:
    place = Place(concurrency=2)
    receiver = place.start()
    receiver.deliver(place.deliveries(1, "sleep", (60,)))
    settle()
    place.consumer.drain()
    idle = place.consumer.idle
    place.consumer.adopt(place.bench.config, place.bench.invocation)
    with gevent.Timeout(5):
        idle.wait()
    assert place.consumer.idle is not idle
    assert not place.consumer.idle.is_set()


def test_nothing_is_received_while_results_can_not_be_written() -> None:
    place = Place(concurrency=5)
    receiver = place.start()
    place.bench.runtime.choked = True
    place.consumer.ask_again()
    assert receiver.asked[-1] == 0
    place.bench.runtime.choked = False
    place.consumer.ask_again()
    assert receiver.asked[-1] == 5


def test_nothing_is_received_while_too_many_tasks_wait_for_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STUCK", 2)
    monkeypatch.setattr(steps, "FIRST_PAUSE", 0.01)
    place = Place(concurrency=5, retries=1)
    place.bench.outside.answers["publish"] = BrokerRefused("no")
    receiver = place.start()
    receiver.deliver(place.deliveries(2, "fail", ()))
    settle()
    assert receiver.asked[-1] == 0
    assert place.consumer.beat(time.monotonic())
    place.bench.outside.answers.clear()
    with gevent.Timeout(5):
        while place.consumer.executor.stuck:
            gevent.sleep(0.005)
    place.consumer.beat(time.monotonic())
    assert receiver.asked[-1] >= 5


def test_what_waits_for_a_slot_is_let_go_when_its_lease_is_lost_and_what_runs_goes_on() -> None:
    place = Place(concurrency=1)
    receiver = place.start()
    first, second = place.deliveries(2, "sleep", (0.02,))
    receiver.deliver([first, second])
    settle()
    assert not place.consumer.drop(first)
    assert place.consumer.drop(second)
    assert (first.slot >= 0, second.slot) == (True, -1)
    with gevent.Timeout(5):
        while place.consumer.running:
            gevent.sleep(0.005)
    assert place.bench.outside.names() == ["ack"]


def test_a_declaration_that_fails_because_the_daemon_stops_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    place = Place()
    gate = Event()

    def closed(spec: QueueSpec) -> list[str]:
        gate.wait()
        raise BrokerRefused("the channel is closed")

    outside: Any = place.bench.outside
    outside.declare = closed
    place.consumer.start()
    settle()
    place.consumer.drain()
    gate.set()
    place.consumer.declared.wait()
    assert place.consumer.refused is None
    assert caplog.text == ""
