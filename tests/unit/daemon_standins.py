"""Plain stand-ins for what status, metrics and web read of the daemon."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from psq.brokers.base import QueueSpec
from psqd.worker.counters import QueueCounters


@dataclass
class Config:
    hash: str = "c0ffee"


@dataclass
class Reloads:
    count: int = 3
    failures: int = 1
    last_at: float = 1_795_560_000.0
    last_error: str = ""


@dataclass
class Stall:
    blocked_seconds: float = 1.5
    blocks: int = 2
    longest: float = 1.0
    last_at: float = 1_795_560_000.0


@dataclass
class Threads:
    taken: int = 7
    most: int = 26


@dataclass
class Service:
    name: str
    restarts: int = 0
    last_error: str = ""
    alive: bool = True


@dataclass
class Logs:
    dropped: int = 5


@dataclass
class Broker:
    url: str = "sqlite:///tmp/psq.db"

    def stats(self) -> dict[str, float]:
        return {"connections": 2.0}


@dataclass
class Storage:
    url: str = "sqlite:///tmp/psq.db"

    def pending_bytes(self) -> int:
        return 77


@dataclass
class Receiver:
    answered_at: float = field(default_factory=time.monotonic)
    asked_at: float = 0.0
    poll_seconds: float = 60.0
    error: str = ""
    missing: str = ""
    requests: int = 1
    stats: dict[str, int] = field(default_factory=lambda: {"receives": 9, "empty": 4, "messages": 50, "errors": 1})


@dataclass
class Consumer:
    name: str
    spec: QueueSpec
    receiver: Receiver | None = field(default_factory=Receiver)
    state: str = "running"
    problem: str = ""
    counters: QueueCounters = field(default_factory=QueueCounters)
    concurrency: int = 10
    running: int = 2
    prefetched: int = 1

    @property
    def held(self) -> int:
        return self.running + self.prefetched


@dataclass
class Daemon:
    consumers: dict[str, Consumer] = field(default_factory=dict)
    config: Config = field(default_factory=Config)
    config_path: str = "/etc/psqd.yaml"
    started_at: float = field(default_factory=lambda: time.time() - 60)
    state: str = "running"
    broker: Any = field(default_factory=Broker)
    storage: Any = field(default_factory=Storage)
    broker_problem: str = ""
    keeper_alive: bool = True
    reloads: Reloads = field(default_factory=Reloads)
    stall: Stall = field(default_factory=Stall)
    threads: Threads = field(default_factory=Threads)
    services: list[Service] = field(
        default_factory=lambda: [Service("heartbeat"), Service("scheduler", 2, "KeyError: 1")]
    )
    logs: Logs = field(default_factory=Logs)


def daemon(*names: str, busy: bool = False) -> Daemon:
    """A daemon that is ready, with these queues."""
    made = Daemon()
    for name in names or ("default",):
        consumer = Consumer(name, QueueSpec(name))
        counters = consumer.counters
        counters.outcomes.update({"finished": 40, "failed": 2})
        counters.dead["not allowed"] = 1
        counters.received, counters.acked, counters.lost = 50, 42, 1
        if busy:
            for seconds in (0.0005, 0.02, 0.02, 4000.0):
                counters.wait.observe(seconds)
                counters.run.observe(seconds)
                counters.total.observe(seconds)
        made.consumers[name] = consumer
    return made
