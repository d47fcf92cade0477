"""What the daemon looks like from outside: its state as JSON, and whether it is ready."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import psutil

import psq
from psq.brokers.base import Broker, QueueSpec, Receiver
from psq.storages.base import Storage
from psqd.worker.counters import Histogram, QueueCounters
from psqd.worker.logformat import redact

__all__ = ["ConsumerView", "DaemonView", "not_ready", "process_figures", "ready", "snapshot"]

#: Queues between two calls of `pause` in `snapshot`.
CHUNK = 50
#: Seconds without an answer after which failing receives, none of which is out, make a queue not ready.
PATIENCE = 10.0


class ConfigView(Protocol):
    """What is read of `psqd.config.Config`."""

    @property
    def hash(self) -> str:
        """Of the content."""


class ReloadsView(Protocol):
    """What is read of the reloader."""

    @property
    def count(self) -> int:
        """Reloads that were applied."""

    @property
    def failures(self) -> int:
        """Reloads that changed nothing."""

    @property
    def last_at(self) -> float:
        """Unix time, 0.0 for none."""

    @property
    def last_error(self) -> str:
        """Of the last one, "" for none."""


class StallView(Protocol):
    """What is read of the hub's heartbeat."""

    @property
    def blocked_seconds(self) -> float:
        """All of it."""

    @property
    def blocks(self) -> int:
        """How often."""

    @property
    def longest(self) -> float:
        """Seconds."""

    @property
    def last_at(self) -> float:
        """Unix time, 0.0 for none."""


class ThreadsView(Protocol):
    """What is read of the hub's native threads."""

    @property
    def taken(self) -> int:
        """By calls that block."""

    @property
    def most(self) -> int:
        """That there may be."""


class ServiceView(Protocol):
    """What is read of a background service."""

    name: str
    restarts: int
    last_error: str

    @property
    def alive(self) -> bool:
        """Its greenlet runs."""


class LogsView(Protocol):
    """What is read of the log."""

    @property
    def dropped(self) -> int:
        """Lines that were lost."""


class ConsumerView(Protocol):
    """What is read of a consumer."""

    name: str
    spec: QueueSpec
    receiver: Receiver | None
    state: str
    problem: str
    counters: QueueCounters

    @property
    def concurrency(self) -> int:
        """Tasks at a time."""

    @property
    def running(self) -> int:
        """Tasks that run."""

    @property
    def prefetched(self) -> int:
        """Deliveries that wait for a slot."""

    @property
    def held(self) -> int:
        """Leases."""


class DaemonView(Protocol):
    """What is read of the daemon."""

    config_path: str
    started_at: float
    state: str
    broker: Broker
    storage: Storage | None
    broker_problem: str
    keeper_alive: bool

    @property
    def config(self) -> ConfigView:
        """The config that runs."""

    @property
    def consumers(self) -> Mapping[str, ConsumerView]:
        """By queue name."""

    @property
    def reloads(self) -> ReloadsView:
        """What became of SIGHUP."""

    @property
    def stall(self) -> StallView:
        """The hub's heartbeat."""

    @property
    def threads(self) -> ThreadsView:
        """The hub's native threads."""

    @property
    def services(self) -> Sequence[ServiceView]:
        """Background services."""

    @property
    def logs(self) -> LogsView:
        """The log."""


def not_ready(consumer: ConsumerView, now: float) -> str:
    """Why a queue is not served right now, "" where it is.

    It is served while its receives are *answered*: an answer, or the sending of the
    receive that is out, is younger than twice the time that the longest one takes.
    A queue whose slots are all taken asks for nothing, and is served. One that has
    just been declared is served while its first receive is out.

    Args:
        consumer: The queue's.
        now: Monotonic.
    """
    if consumer.problem:
        return redact(consumer.problem)
    if consumer.state != "running":
        return "being declared" if consumer.state in ("declaring", "stopped") else consumer.state
    receiver = consumer.receiver
    if receiver is None:
        return "it receives nothing"
    if receiver.missing:
        return redact(receiver.missing)
    if not receiver.requests and consumer.held >= consumer.concurrency:
        return ""
    trouble = redact(receiver.error)
    silent = now - max(receiver.answered_at, receiver.asked_at)
    if not receiver.answered_at and (trouble or not receiver.asked_at):
        return f"no receive was answered yet{': ' * bool(trouble)}{trouble}"
    if trouble and not receiver.requests and now - receiver.answered_at > PATIENCE:
        return f"receives fail: {trouble}"
    if silent > 2 * receiver.poll_seconds:
        return f"no receive was answered for {silent:.0f} s{': ' * bool(trouble)}{trouble}"
    return ""


def ready(daemon: DaemonView) -> tuple[bool, dict[str, list[str]]]:
    """Whether all that the config asks for is served.

    Returns:
        (True, {}), or (False, the reasons by queue name; those of the whole daemon under ``""``).
    """
    now = time.monotonic()
    reasons: dict[str, list[str]] = {}
    whole = []
    if daemon.state != "running":
        whole.append(f"the daemon is {daemon.state}")
    if daemon.broker_problem:
        whole.append(f"broker: {redact(daemon.broker_problem)}")
    if not daemon.keeper_alive:
        whole.append("the keeper is dead")
    if whole:
        reasons[""] = whole
    for name, consumer in list(daemon.consumers.items()):
        if consumer.state != "draining":
            why = not_ready(consumer, now)
            if why:
                reasons[name] = [why]
    return not reasons, reasons


def snapshot(daemon: DaemonView, pause: Callable[[], None] | None = None) -> dict[str, Any]:
    """The daemon's state, JSON-able; no payloads, no secrets.

    Args:
        daemon: The daemon.
        pause: Called now and then, to let others run between a thousand queues.
    """
    is_ready, reasons = ready(daemon)
    queues: dict[str, Any] = {}
    for number, (name, consumer) in enumerate(list(daemon.consumers.items()), 1):
        queues[name] = _queue(consumer)
        if pause is not None and number % CHUNK == 0:
            pause()
    broker, storage, reloads, stall = daemon.broker, daemon.storage, daemon.reloads, daemon.stall
    return {
        "version": psq.__version__,
        "host": socket.gethostname(),
        "state": daemon.state,
        "ready": is_ready,
        "why": reasons.get("", []),
        "started_at": _iso(daemon.started_at),
        "uptime": round(time.time() - daemon.started_at, 3),
        "config": {"path": daemon.config_path, "hash": daemon.config.hash},
        "reloads": {
            "ok": reloads.count,
            "failed": reloads.failures,
            "last_at": _iso(reloads.last_at),
            "last_error": redact(reloads.last_error),
        },
        "broker": {"url": redact(broker.url), "problem": redact(daemon.broker_problem), "stats": broker.stats()},
        "storage": None if storage is None else {"url": redact(storage.url), "pending_bytes": storage.pending_bytes()},
        "keeper": {"alive": daemon.keeper_alive, "pid": os.getppid() if daemon.keeper_alive else None},
        "hub": {
            "blocked_seconds": round(stall.blocked_seconds, 3),
            "blocks": stall.blocks,
            "longest": round(stall.longest, 3),
            "last_at": _iso(stall.last_at),
            "threads": daemon.threads.taken,
            "most_threads": daemon.threads.most,
        },
        "services": [
            {"name": s.name, "alive": s.alive, "restarts": s.restarts, "last_error": redact(s.last_error)}
            for s in daemon.services
        ],
        "process": {"pid": os.getpid(), **process_figures()},
        "log": {"dropped": daemon.logs.dropped},
        "queues": queues,
    }


def _queue(consumer: ConsumerView) -> dict[str, Any]:
    counters, receiver, now = consumer.counters, consumer.receiver, time.monotonic()
    document: dict[str, Any] = {
        "state": consumer.state,
        "why_not_ready": "" if consumer.state == "draining" else not_ready(consumer, now),
        "concurrency": consumer.concurrency,
        "running": consumer.running,
        "prefetched": consumer.prefetched,
        "held": consumer.held,
        "tasks": dict(counters.outcomes),
        "dead": dict(counters.dead),
        "received": counters.received,
        "received_bytes": counters.received_bytes,
        "acked": counters.acked,
        "ack_errors": counters.ack_errors,
        "given_back": counters.given_back,
        "parked": counters.parked,
        "scheduled": counters.scheduled,
        "lost": counters.lost,
        "unknown": counters.unknown,
        "mean_wait": _mean(counters.wait),
        "mean_run": _mean(counters.run),
        "mean_total": _mean(counters.total),
    }
    if consumer.spec.broadcast:
        document["broadcast"] = consumer.spec.member or True
    if receiver is not None:
        document["receive"] = {
            "in_flight": receiver.requests,
            "answered_ago": round(now - receiver.answered_at, 3) if receiver.answered_at else None,
            "error": redact(receiver.error),
            **getattr(receiver, "stats", {}),
        }
    return document


def _mean(histogram: Histogram) -> float | None:
    count = sum(histogram.counts)
    return round(histogram.sum / count, 6) if count else None


def _iso(instant: float) -> str | None:
    return datetime.fromtimestamp(instant, UTC).isoformat(timespec="milliseconds") if instant else None


_process: psutil.Process | None = None


def process_figures() -> dict[str, float]:
    """CPU seconds, resident bytes, native threads and open descriptors of this process."""
    global _process
    if _process is None or _process.pid != os.getpid():
        _process = psutil.Process()
    with _process.oneshot():
        cpu = _process.cpu_times()
        return {
            "cpu_seconds": round(cpu.user + cpu.system, 3),
            "rss_bytes": _process.memory_info().rss,
            "threads": _process.num_threads(),
            "open_fds": _process.num_fds(),
        }
