"""Races of a reload: each is a row of the table in psqd/worker/reloader.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

from psq.errors import BrokerUnavailable, ConfigError
from psq.functions import Allowed
from psqd.config import Config, HttpConfig, LoggingConfig
from psqd.worker.consumer import Consumer
from psqd.worker.reloader import Reloader
from tests.unit.worker_fakes import Bench


class Logs:
    def reconfigure(self, config: Any) -> None:
        pass


class FakeReceiver:
    """Stops when the test says."""

    def __init__(self) -> None:
        self.stopped: list[Callable[[], None]] = []

    def start(self) -> None:
        pass

    def ask(self, n: int) -> None:
        pass

    def stop(self, grace: float, stopped: Callable[[], None]) -> None:
        self.stopped.append(stopped)


class Place:
    """A daemon's outline around a real Reloader and real consumers."""

    def __init__(self, *names: str) -> None:
        self.bench = Bench(storage=False)
        self.state, self.logs, self.runtime = "running", Logs(), self.bench.runtime
        self.broker: Any = self.bench.outside
        self.broker.check_queue_name = lambda name: None
        self.broker.declare = self._declare
        self.broker.receiver = lambda spec, deliver: self.receivers.setdefault(spec.name, FakeReceiver())
        self.receivers: dict[str, FakeReceiver] = {}
        self.queues: Any = self
        self.config = self._config(names)
        self.consumers: dict[str, Consumer] = {}
        self.retiring: set[Consumer] = set()
        self.next: list[Config | Exception] = []
        self.loads = 0
        self.gates: dict[str, Event] = {}
        self.problems: dict[str, Exception] = {}
        self.told: list[list[str]] = []
        daemon: Any = self
        self.reloader = Reloader(daemon)
        for name in names:
            self.consumers[name] = self.make_consumer(self.config, name)
            self.consumers[name].start()
        settle()

    def _config(self, names: tuple[str, ...] | list[str], **settings: Any) -> Config:
        return Config(
            broker="sqlite:///nowhere", imports=["tests.unit.worker_tasks"], queues=dict.fromkeys(names, settings)
        )

    def _declare(self, spec: Any) -> list[str]:
        if spec.name in self.gates:
            self.gates[spec.name].wait()
        if spec.name in self.problems:
            raise self.problems[spec.name]
        return []

    # what the Reloader asks of a daemon

    def load(self) -> Config:
        self.loads += 1
        found = self.next.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def make_allowed(self, config: Config) -> Allowed:
        return Allowed(config.imports)

    def make_consumer(self, config: Config, name: str, allowed: Allowed | None = None) -> Consumer:
        settings = config.queues[name]
        spec = self.spec(name, settings)
        return Consumer(name, settings, spec, self.runtime, self.bench.invocation, set())

    def spec(self, name: str, settings: Any) -> Any:
        return settings.spec(name)

    def invocation(self, name: str, settings: Any, allowed: Allowed) -> Any:
        return self.bench.invocation

    def size_threads(self, config: Config) -> None:
        pass

    def tell_keeper(self, config: Config) -> None:
        self.told.append(sorted(config.queues))

    def serve_http(self, config: Config) -> None:
        pass

    # what tests ask

    def reload(self, *names: str, **settings: Any) -> None:
        self.next.append(self._config(names, **settings))
        self.reloader.request()
        settle()


def settle() -> None:
    for _ in range(5):
        gevent.sleep(0)
    gevent.idle()
    gevent.sleep(0)


def test_added_queues_start_and_removed_ones_are_forgotten_when_idle() -> None:
    place = Place("a", "b")
    place.reload("b", "c")
    assert place.consumers["c"].state == "running"
    assert place.consumers["a"].state == "draining"
    place.receivers["a"].stopped[0]()
    settle()
    assert sorted(place.consumers) == ["b", "c"]
    assert not place.retiring
    assert place.reloader.count == 1


def test_a_queue_that_ends_draining_while_a_reload_that_keeps_it_is_prepared_starts_anew() -> None:
    place = Place("a", "b")
    place.reload("b")
    old = place.consumers["a"]
    place.gates["c"] = Event()
    place.reload("a", "b", "c")
    place.receivers["a"].stopped[0]()
    settle()
    assert "a" not in place.consumers
    place.gates.pop("c").set()
    settle()
    assert place.consumers["a"] is not old
    assert place.consumers["a"].state == "running"
    assert place.reloader.failures == 0


def test_a_queue_that_is_added_again_while_it_drains_is_adopted() -> None:
    place = Place("a", "b")
    place.reload("b")
    old = place.consumers["a"]
    place.reload("a", "b", concurrency=7)
    assert place.consumers["a"] is old
    assert (old.state, old.concurrency) == ("running", 7)
    place.receivers["a"].stopped[0]()
    settle()
    assert place.consumers["a"] is old


def test_a_queue_whose_kind_changes_is_served_anew_and_its_old_tasks_are_still_known() -> None:
    place = Place("a")
    old = place.consumers["a"]
    place.reload("a", ack_deadline=20.0)
    assert place.consumers["a"] is not old
    assert place.retiring == {old}
    assert place.consumers["a"].spec.ack_deadline == 20.0


def test_requests_during_a_reload_coalesce_into_one_more() -> None:
    place = Place("a")
    place.gates["b"] = Event()
    place.reload("a", "b")
    for _ in range(5):
        place.reloader.request()
    place.next.append(place._config(("a", "b", "c")))
    place.gates.pop("b").set()
    settle()
    assert place.loads == 2
    assert sorted(place.consumers) == ["a", "b", "c"]


def test_a_reload_during_a_drain_is_ignored() -> None:
    place = Place("a")
    place.state = "draining"
    place.reload("a", "b")
    assert place.loads == 0


def test_a_stop_during_a_reload_drops_it() -> None:
    place = Place("a")
    place.gates["b"] = Event()
    place.reload("a", "b")
    place.reloader.cancel()
    place.gates["b"].set()
    settle()
    assert sorted(place.consumers) == ["a"]
    assert place.reloader.count == 0


def test_a_queue_added_while_the_daemon_is_paused_waits_too() -> None:
    place = Place("a")
    place.state = "paused"
    place.reload("a", "b")
    assert place.consumers["b"].state == "paused"


@pytest.mark.parametrize("problem", [ConfigError("conf:1:1: bad"), RuntimeError("a bug")])
def test_a_file_that_can_not_be_read_changes_nothing(problem: Exception) -> None:
    place = Place("a")
    before = place.config
    place.next.append(problem)
    place.reloader.request()
    settle()
    assert place.config is before
    assert place.reloader.failures == 1
    assert str(problem) in place.reloader.last_error
    assert place.told == []


def test_a_new_queue_that_can_not_be_declared_changes_nothing() -> None:
    place = Place("a")
    place.problems["b"] = BrokerUnavailable("away")
    place.reload("a", "b", concurrency=3)
    assert sorted(place.consumers) == ["a"]
    assert place.consumers["a"].concurrency == 100
    assert "away" in place.reloader.last_error


def test_a_module_that_can_not_be_imported_changes_nothing() -> None:
    place = Place("a")
    changed = place._config(("a", "b")).model_copy(update={"imports": ["tests.no_such_module"]})
    place.next.append(changed)
    place.reloader.request()
    settle()
    assert sorted(place.consumers) == ["a"]
    assert "no_such_module" in place.reloader.last_error


def test_what_needs_a_restart_keeps_its_old_value() -> None:
    place = Place("a")
    place.next.append(place._config(("a",)).model_copy(update={"broker": "sqlite:///elsewhere"}))
    place.reloader.request()
    settle()
    assert place.config.broker == "sqlite:///nowhere"
    assert place.reloader.count == 1


def test_no_greenlet_is_left_over_from_queues_that_are_adopted() -> None:
    place = Place("a", "b")
    place.reload("b")
    waiting = place.consumers["a"].idle
    place.reload("a", "b")
    assert not place.retiring
    with gevent.Timeout(5):
        waiting.wait()
    settle()
    assert waiting.linkcount() == 0


def test_a_queue_that_is_adopted_and_removed_again_is_forgotten_only_when_the_last_task_has_ended() -> None:
    place = Place("a", "b")
    place.reload("b")
    place.reload("a", "b")
    consumer = place.consumers["a"]
    consumer.pool.running += 1
    place.reload("b")
    for stopped in place.receivers["a"].stopped:
        stopped()
    settle()
    assert place.retiring == {consumer}
    consumer.pool.running -= 1
    consumer.ended.set()
    settle()
    assert sorted(place.consumers) == ["b"]
    assert not place.retiring


def test_a_reload_that_swallows_its_end_does_not_hold_up_a_drain_nor_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("a")
    gate = Event()

    def stubborn(self: Allowed) -> None:
        while not gate.is_set():
            try:
                gate.wait()
            except gevent.GreenletExit:
                continue

    monkeypatch.setattr(Allowed, "import_all", stubborn)
    place.reload("a", "b")
    place.state = "draining"
    with gevent.Timeout(5):
        place.reloader.cancel()
    gate.set()
    settle()
    assert sorted(place.consumers) == ["a"]
    assert place.reloader.count == 0


@pytest.mark.parametrize(
    ("context", "told"),
    [
        ("tests.unit.worker_tasks:nothing", "AttributeError"),
        ("tests.no_such_module:x", "ModuleNotFoundError"),
        ("tests.unit.sample_exits:context", "SystemExit: 5"),
    ],
)
def test_a_context_that_can_not_be_had_changes_nothing(context: str, told: str) -> None:
    place = Place("a")
    place.reload("a", extra_context=context, concurrency=3)
    assert place.consumers["a"].concurrency == 100
    assert place.reloader.failures == 1
    assert f"queues.a.extra_context: {context}: {told}" in place.reloader.last_error


def test_a_log_file_that_can_not_be_opened_changes_nothing(tmp_path: Path) -> None:
    place = Place("a")
    changed = place._config(("a",), concurrency=3)
    file = str(tmp_path / "nowhere" / "psqd.log")
    place.next.append(changed.model_copy(update={"logging": LoggingConfig(file=file)}))
    place.reloader.request()
    settle()
    assert place.consumers["a"].concurrency == 100
    assert f"can't open '{file}'" in place.reloader.last_error


def test_an_address_that_could_not_be_had_is_tried_again_by_the_next_reload() -> None:
    place = Place("a")
    served: list[str] = []

    def serve_http(config: Config) -> None:
        assert config.http is not None
        served.append(config.http.bind)
        if len(served) == 1:
            raise ConfigError("http.bind: the port is taken")

    place.serve_http = serve_http  # type: ignore[method-assign]
    changed = place._config(("a",), concurrency=3).model_copy(update={"http": HttpConfig(bind="127.0.0.1:9191")})
    place.next += [changed, changed]
    place.reloader.request()
    settle()
    assert place.consumers["a"].concurrency == 3  # the rest is in place
    assert "the port is taken" in place.reloader.last_error
    place.reloader.request()
    settle()
    assert served == ["127.0.0.1:9191", "127.0.0.1:9191"]
    assert place.reloader.last_error == ""
    assert place.config.http == changed.http
