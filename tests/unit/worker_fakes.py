"""Stand-ins for what the worker's parts talk to: calls are recorded, and answered when the test says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from psq.brokers.base import DeadLetter, Delivery, Outgoing, QueueSpec
from psq.functions import Allowed
from psq.message import Message, attributes, encode
from psq.retry import RetryPolicy
from psq.storages.base import Scheduled, TaskRecord
from psqd.config import QueueConfig
from psqd.worker.counters import QueueCounters
from psqd.worker.executor import Executor
from psqd.worker.held import Held
from psqd.worker.invocation import Invocation
from psqd.worker.runtime import Runtime
from psqd.worker.stall import Stall

SPEC = QueueSpec("q")


class FakeLink:
    """The worker's end of the link: slots and their bytes."""

    def __init__(self) -> None:
        self.next = 0
        self.taken: list[tuple[str, list[Any]]] = []
        self.released: list[int] = []
        self.marks: list[tuple[str, int]] = []

    def allocate(self) -> int:
        self.next += 1
        return self.next - 1

    def take(self, source: str, leases: list[Any]) -> None:
        self.taken.append((source, leases))

    def release(self, slots: list[int]) -> None:
        self.released += slots

    def mark_started(self, slot: int) -> None:
        self.marks.append(("started", slot))

    def mark_ended(self, slot: int) -> None:
        self.marks.append(("ended", slot))


class Recorder:
    """Broker, storage and dead letters in one: a list of calls, each with the callback that answers it."""

    scheme = "fake"
    max_park = 600.0
    schedules = False
    can_schedule = True
    identity = "here"

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.done: list[Callable[[Any, Exception | None], None]] = []
        self.answers: dict[str, Exception | None] = {}
        self.hold = False

    def _call(self, what: str, argument: Any, done: Callable[[Any, Exception | None], None]) -> None:
        self.calls.append((what, argument))
        if self.hold:
            self.done.append(done)
        else:
            done(None, self.answers.get(what))

    def source(self, queue: QueueSpec) -> str:
        return queue.name

    def ack(self, delivery: Delivery, done: Any) -> None:
        self._call("ack", delivery, done)

    def nack(self, deliveries: Sequence[Delivery], done: Any) -> None:
        self._call("nack", list(deliveries), done)

    def park(self, deliveries: Sequence[Delivery], seconds: float, done: Any) -> None:
        self._call("park", seconds, done)

    def publish(self, message: Outgoing, done: Any, *, timeout: float = 10.0) -> None:
        self._call("publish", message, done)

    def put(self, record: TaskRecord, done: Any) -> None:
        self._call("put", (record.state, record.result, record.error, record.id), done)

    def put_dead(self, letter: DeadLetter, done: Any) -> None:
        self._call("put_dead", letter, done)

    def schedule(self, item: Scheduled, done: Any) -> None:
        self._call("schedule", item, done)

    def names(self) -> list[str]:
        """The calls, in order."""
        return [name for name, _ in self.calls]


class QuietLog:
    """A task log that keeps its lines."""

    all = True

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, str]] = []

    def started(self, message: Message, queue: str, waited: float) -> None:
        pass

    def ended(self, message: Message, queue: str, outcome: str, *rest: Any) -> None:
        self.outcomes.append((outcome, str(rest[2]) if len(rest) > 2 else ""))


class Bench:
    """One executor with everything around it faked but its own parts."""

    def __init__(self, *, storage: bool = True, broadcast: bool = False, **settings: Any) -> None:
        self.outside, self.link, self.log = Recorder(), FakeLink(), QuietLog()
        self.stall = Stall(lambda: None, lambda now: None)
        broker: Any = self.outside
        self.held = Held(self.link, broker, carry=True)
        self.runtime = Runtime(
            broker,
            broker if storage else None,
            broker,
            self.held,
            self.stall,
            Allowed(["tests.unit.worker_tasks"]),
            self.log,
            max_strikes=3,
            unknown_function_grace=600.0,
            max_prefetch_bytes=1 << 26,
            worker="host:1",
        )
        self.config = QueueConfig(type="broadcast" if broadcast else "shared", **settings)
        self.spec = self.config.spec("q", "host-0" if broadcast else "")
        self.counters = QueueCounters()
        self.again: list[Delivery] = []
        policy: RetryPolicy = self.config.policy
        context = settings.get("extra_context")
        self.invocation = Invocation(
            None, context, policy, self.config.time_limit, self.config.soft_time_limit, lambda module: True
        )
        self.executor = Executor("q", self.config, self.runtime, self.invocation, self.counters, self.again.append)

    def delivery(self, data: bytes, attributes: dict[str, str] | None = None) -> Delivery:
        """A delivery that is held."""
        made = Delivery(self.spec, "key", data, attributes or {}, 0.0, 10.0, None)
        self.held.take([made])
        return made

    def run(self, message: Message) -> Delivery:
        """Run a message to its outcome."""
        delivery = self.delivery(encode(message), attributes(message))
        self.executor.run(delivery)
        return delivery
