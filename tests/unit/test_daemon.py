"""The daemon's order of things: start, commands, pause, and an end that nothing holds up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event

from psq.brokers.base import Delivery, QueueSpec
from psq.errors import BrokerRefused, BrokerUnavailable
from psq.functions import Allowed
from psq.message import Message, encode
from psqd.config import Config
from psqd.worker import daemon as module
from psqd.worker.daemon import REFUSED, STOPPED, Daemon, Parts
from tests.unit.worker_fakes import FakeLink, QuietLog, Recorder


class Link(FakeLink):
    """The link as the daemon uses it; `say` is the keeper."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []
        self.say: Callable[[dict[str, Any]], None]

    def listen(self, on_message: Callable[[dict[str, Any]], None], on_end: Callable[[], None]) -> None:
        self.say = on_message

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message["op"])

    def beat(self) -> None:
        pass


class Broker(Recorder):
    """A broker with one receiver a queue; declares as the test says."""

    url = "fake://"

    def __init__(self) -> None:
        super().__init__()
        self.problems: dict[str, Exception] = {}
        self.gates: dict[str, Event] = {}
        self.deliver: dict[str, Callable[[list[Delivery]], None]] = {}
        self.closing: Callable[[], None] = lambda: None
        self.closed = False
        self.pending = 0

    def declare(self, spec: QueueSpec) -> list[str]:
        if gate := self.gates.get(spec.name):
            gate.wait()
        if problem := self.problems.get(spec.name):
            raise problem
        return []

    def receiver(self, spec: QueueSpec, deliver: Callable[[list[Delivery]], None]) -> Any:
        self.deliver[spec.name] = deliver
        return self

    def start(self) -> None:
        pass

    def ask(self, n: int) -> None:
        pass

    def stop(self, grace: float, stopped: Callable[[], None]) -> None:
        stopped()

    def lease_spec(self) -> dict[str, Any]:
        return {}

    def tick(self) -> None:
        pass

    def sweep(self, now: float) -> int:
        return 0

    def pending_bytes(self) -> int:
        return self.pending

    can_list = True
    shards = 1

    def claim(self, key: str, owner: str, seconds: float) -> bool:
        return False

    def close(self) -> None:
        self.closing()
        self.closed = True


class Logs:
    def reopen(self) -> None:
        raise OSError("no space left")


class Place:
    """A daemon on fakes, running in a greenlet of its own."""

    def __init__(self, *names: str, shutdown_timeout: float = 2.0, begin: bool = True) -> None:
        self.broker, self.link = Broker(), Link()
        self.config = Config(
            broker="sqlite:///nowhere",
            imports=["tests.unit.worker_tasks"],
            queues={name: {} for name in names},  # type: ignore[misc]
            shutdown_timeout=shutdown_timeout,
        )
        parts: Any = Parts(
            self.config,
            lambda: self.config,
            "conf",
            self.broker,  # type: ignore[arg-type]
            self.broker,  # type: ignore[arg-type]
            self.link,
            Logs(),
            QuietLog(),
            lambda config: Allowed(config.imports),
            Allowed(self.config.imports),
            SimpleNamespace(extra_context=None),
        )
        self.daemon = Daemon(parts)
        self.running: gevent.Greenlet[[], int] = gevent.Greenlet(self.daemon.run)
        if begin:
            self.running.start()
            self.wait(lambda: "ready" in self.link.sent)

    def wait(self, condition: Callable[[], bool]) -> None:
        with gevent.Timeout(10):
            while not condition():
                gevent.sleep(0.005)

    def say(self, op: str, **more: Any) -> None:
        self.link.say({"op": op, **more})

    def end(self) -> int:
        with gevent.Timeout(10):
            self.running.join()
        assert self.running.successful()
        code: int = self.running.value
        return code

    def deliver(self, name: str, function: str, *args: Any) -> list[Delivery]:
        spec, now = self.daemon.consumers[name].spec, time.monotonic()
        data = encode(Message("id", f"tests.unit.worker_tasks:{function}", list(args), {}, name))
        made = [Delivery(spec, "key", data, {}, now, now + 10, None)]
        self.broker.deliver[name](made)
        return made


@pytest.fixture
def started() -> Iterator[Callable[..., Place]]:
    places: list[Place] = []

    def start(*names: str, **settings: Any) -> Place:
        places.append(Place(*names, **settings))
        return places[-1]

    yield start
    for place in places:
        place.running.kill()
        for service in place.daemon.services:
            service.stop(0.1)


Start = Callable[..., Place]


def test_a_drain_with_nothing_to_do_ends_at_once_with_0(started: Start) -> None:
    place = started("a", "b")
    place.say("drain")
    assert place.end() == STOPPED
    assert place.link.sent == ["settings", "ready", "stopping"]
    assert place.broker.closed


def test_a_drain_before_the_first_declaration_is_answered_ends_too(started: Start) -> None:
    place = started("a", begin=False)
    place.broker.gates["a"] = Event()
    place.running.start()
    place.wait(lambda: hasattr(place.link, "say"))
    place.say("drain")
    assert place.end() == STOPPED


def test_a_broker_that_is_away_is_no_reason_to_end_and_the_keeper_is_told_that_it_runs(
    started: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    place = started("a", "b", begin=False)
    place.broker.problems["a"] = BrokerUnavailable("away")
    place.running.start()
    place.wait(lambda: "ready" in place.link.sent)
    assert "not ready yet: 1 of 2 queues wait for the broker, fake://: a" in caplog.text
    assert "ready: 2 queues" not in caplog.text
    del place.broker.problems["a"]
    place.wait(lambda: "ready: 2 queues" in caplog.text)
    place.say("drain")
    assert place.end() == STOPPED


def test_a_queue_that_is_refused_at_start_ends_it_with_3_and_what_others_run_is_not_cut_off(started: Start) -> None:
    place = started("a", "b", begin=False)
    place.broker.problems["b"] = BrokerRefused("no permission")
    place.broker.gates["b"] = Event()
    place.running.start()
    place.wait(lambda: "a" in place.broker.deliver)
    place.deliver("a", "sleep", 0.1)
    gevent.sleep(0.02)
    place.broker.gates["b"].set()
    assert place.end() == REFUSED
    assert place.broker.names() == ["put", "ack"]
    assert "ready" not in place.link.sent


def test_a_part_that_does_not_close_is_not_waited_for(started: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAST_CALLS", 0.0)
    place = started("a", shutdown_timeout=0.2)
    never = Event()
    place.broker.closing = lambda: bool(never.wait())
    place.say("drain")
    assert place.end() == STOPPED
    assert not place.broker.closed


def test_a_task_that_does_not_end_is_interrupted_and_given_back(started: Start) -> None:
    place = started("a", shutdown_timeout=0.4)
    place.deliver("a", "sleep", 60)
    gevent.sleep(0.02)
    place.say("drain")
    assert place.end() == STOPPED
    assert place.broker.names() == ["nack"]


def test_what_was_never_answered_is_given_back_at_the_end(started: Start) -> None:
    place = started("a", shutdown_timeout=0.4)
    place.broker.hold = True
    (delivery,) = place.deliver("a", "add", 1, 1)
    place.say("drain")
    assert place.end() == STOPPED
    assert place.broker.calls[-1] == ("nack", [delivery])


def test_a_stop_that_was_asked_for_while_the_hub_stood_still_counts_from_the_asking(started: Start) -> None:
    place = started("a", shutdown_timeout=1000.0)
    (delivery,) = place.deliver("a", "sleep", 900)
    place.wait(lambda: place.daemon.consumers["a"].running == 1)
    place.say("drain", at=time.monotonic() - 999.0)
    assert place.end() == STOPPED
    assert place.broker.calls[-1] == ("nack", [delivery])


def test_a_command_that_fails_costs_nothing(started: Start, caplog: pytest.LogCaptureFixture) -> None:
    place = started("a")
    place.deliver("a", "sleep", 0.05)
    place.say("reopen_logs")
    place.say("lost")  # without its keys
    place.wait(lambda: place.broker.names() == ["put", "ack"])
    assert "no space left" in caplog.text
    place.say("drain")
    assert place.end() == STOPPED


def test_a_pause_before_it_is_ready_holds(started: Start) -> None:
    place = started("a", begin=False)
    place.broker.gates["a"] = Event()
    place.running.start()
    place.wait(lambda: hasattr(place.link, "say"))
    place.say("pause")
    place.wait(lambda: place.daemon.state == "paused")
    place.broker.gates.pop("a").set()
    place.wait(lambda: "ready" in place.link.sent)
    assert place.daemon.state == "paused"
    assert place.broker.deliver == {}
    place.say("continue")
    place.wait(lambda: place.daemon.consumers["a"].state == "running")
    assert place.daemon.state == "running"


def test_a_paused_daemon_can_be_drained(started: Start) -> None:
    place = started("a")
    place.say("pause")
    place.say("drain")
    assert place.end() == STOPPED


def test_leases_that_are_lost_before_their_tasks_began_are_let_go(started: Start) -> None:
    place = started("a")
    place.daemon.consumers["a"].resize(1)
    (first,) = place.deliver("a", "sleep", 0.1)
    (second,) = place.deliver("a", "add", 1, 1)
    gevent.sleep(0.01)
    place.say("lost", slots=[first.slot, second.slot], keys=["key", "key"])
    place.wait(lambda: second.slot == -1)
    assert first.slot >= 0
    assert place.daemon.consumers["a"].counters.lost == 2
    place.wait(lambda: place.broker.names() == ["put", "ack"])


def test_nothing_is_received_while_the_storage_does_not_keep_up(started: Start) -> None:
    place = started("a")
    place.broker.pending = module.MAX_PENDING + 1
    place.wait(lambda: place.daemon.runtime.choked)
    place.broker.pending = 0
    place.wait(lambda: not place.daemon.runtime.choked)
