"""The daemon's counters as Prometheus metrics.

Two steps: figures are copied on the hub (cheap, and no thread looks at what the
hub changes), then turned into text in the hub's thread pool, where a thousand
queues don't stop the tasks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import gevent
from gevent import get_hub
from gevent.lock import BoundedSemaphore
from prometheus_client import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

import psq
from psq.concurrency import original
from psqd.worker.counters import BUCKETS, Histogram
from psqd.worker.status import ConsumerView, DaemonView, not_ready, process_figures, ready

__all__ = ["Figures", "Metrics", "families", "figures"]

#: Scrapes that come within this time of the last share its answer, seconds.
FRESH = 1.0
#: Queues between two pauses, on the hub and in the thread.
CHUNK = 20
#: How long the thread lets go of the interpreter between two chunks, seconds: a busy
#: native thread otherwise keeps it for 5 ms each time the hub wants it.
LET_GO = 0.0002

_COUNTERS: tuple[tuple[str, str, str], ...] = (
    ("received", "psqd_received", "Deliveries received."),
    ("received_bytes", "psqd_received_bytes", "Bytes of the deliveries received."),
    ("acked", "psqd_acks", "Acks that were answered."),
    ("ack_errors", "psqd_ack_errors", "Acks that were refused."),
    ("given_back", "psqd_given_back", "Deliveries given back without a start."),
    ("parked", "psqd_parked", "Deliveries held back until their time."),
    ("scheduled", "psqd_scheduled", "Deliveries moved to the schedule in storage."),
    ("lost", "psqd_leases_lost", "Leases lost while they were held: the task may run twice."),
    ("unknown", "psqd_unknown_functions", "Deliveries held back because their function or version is not known yet."),
)
_RECEIVES: tuple[tuple[str, str, str], ...] = (
    ("receives", "psqd_receives", "Receives (pulls) that were answered."),
    ("empty", "psqd_receives_empty", "Receives that were answered with nothing."),
    ("errors", "psqd_receive_errors", "Receives that failed."),
)
_GAUGES: tuple[tuple[str, str, str], ...] = (
    ("concurrency", "psqd_concurrency", "Tasks that may run at a time."),
    ("running", "psqd_running", "Tasks that run."),
    ("prefetched", "psqd_prefetched", "Deliveries that wait for a slot."),
    ("held", "psqd_leases_held", "Leases that are held: running and waiting for a slot."),
    ("in_flight", "psqd_receives_in_flight", "Receives (pulls) in flight."),
    ("ready", "psqd_queue_ready", "1 while receives of the queue are answered."),
)
_TIMES: tuple[tuple[str, str, str], ...] = (
    ("wait", "psqd_task_wait_seconds", "From when a task was due to its start."),
    ("run", "psqd_task_run_seconds", "From the start of a task to its end."),
    ("total", "psqd_task_total_seconds", "From the enqueue of a task to its end."),
)
_BOUNDS = [*(str(float(bound)) for bound in BUCKETS), "+Inf"]


@dataclass(slots=True)
class _Queue:
    """Figures of one queue, copied."""

    name: str
    values: dict[str, float]
    outcomes: dict[str, int]
    dead: dict[str, int]
    receives: dict[str, int] | None
    times: dict[str, tuple[list[int], float]]


@dataclass(slots=True)
class Figures:
    """What one scrape shows, copied from the daemon: nothing of it changes any more."""

    queues: list[_Queue] = field(default_factory=list)
    single: list[tuple[str, str, str, float]] = field(default_factory=list)  # kind, name, help, value
    labelled: list[tuple[str, str, str, str, dict[str, float]]] = field(default_factory=list)  # …, label, values


def _of_queue(consumer: ConsumerView, now: float) -> _Queue:
    counters, receiver = consumer.counters, consumer.receiver
    values: dict[str, float] = {name: getattr(counters, name) for name, _, _ in _COUNTERS}
    values["concurrency"] = consumer.concurrency
    values["running"] = consumer.running
    values["prefetched"] = consumer.prefetched
    values["held"] = consumer.held
    values["in_flight"] = receiver.requests if receiver is not None else 0
    values["ready"] = float(consumer.state != "draining" and not not_ready(consumer, now))
    return _Queue(
        consumer.name,
        values,
        dict(counters.outcomes),
        dict(counters.dead),
        dict(receiver.stats) if receiver is not None else None,
        {name: _copy(getattr(counters, name)) for name, _, _ in _TIMES},
    )


def _copy(histogram: Histogram) -> tuple[list[int], float]:
    return histogram.counts.copy(), histogram.sum


def figures(daemon: DaemonView, pause: Callable[[], None] | None = None) -> Figures:
    """Copy the daemon's figures; on the hub.

    Args:
        daemon: The daemon.
        pause: Called now and then, to let others run between a thousand queues.
    """
    now = time.monotonic()
    copied = Figures()
    for number, consumer in enumerate(list(daemon.consumers.values()), 1):
        copied.queues.append(_of_queue(consumer, now))
        if pause is not None and number % CHUNK == 0:
            pause()
    reloads, stall, storage, process = daemon.reloads, daemon.stall, daemon.storage, process_figures()
    is_ready, _ = ready(daemon)
    copied.single = [
        ("gauge", "psqd_up", "1: the worker answers.", 1),
        ("gauge", "psqd_ready", "1 while every queue is served.", is_ready),
        ("gauge", "psqd_draining", "1 while the daemon stops.", daemon.state == "draining"),
        ("gauge", "psqd_paused", "1 while nothing is received (SIGTSTP).", daemon.state == "paused"),
        (
            "gauge",
            "psqd_keeper_alive",
            "1 while the parent process, which keeps the leases, lives.",
            daemon.keeper_alive,
        ),
        ("gauge", "psqd_start_time_seconds", "Unix time of the worker's start.", daemon.started_at),
        ("counter", "psqd_hub_blocked_seconds", "Time in which no task could go on.", stall.blocked_seconds),
        ("counter", "psqd_hub_blocks", "How often one task kept all others from going on.", stall.blocks),
        ("gauge", "psqd_hub_longest_block_seconds", "The longest of these.", stall.longest),
        ("gauge", "psqd_hub_threads", "Native threads taken by calls that block.", daemon.threads.taken),
        ("gauge", "psqd_hub_threads_most", "How many there may be.", daemon.threads.most),
        ("gauge", "psqd_last_reload_time_seconds", "Unix time of the last reload, 0 for none.", reloads.last_at),
        (
            "gauge",
            "psqd_last_reload_ok",
            "0 when the last reload failed: the old config runs on.",
            not reloads.last_error,
        ),
        ("counter", "psqd_log_lines_dropped", "Log lines lost because nobody read them in time.", daemon.logs.dropped),
        ("gauge", "psqd_storage_pending_bytes", "Results on their way.", storage.pending_bytes() if storage else 0),
        ("counter", "process_cpu_seconds", "User and system CPU time of the worker.", process["cpu_seconds"]),
        ("gauge", "process_resident_memory_bytes", "Resident memory of the worker.", process["rss_bytes"]),
        ("gauge", "process_threads", "Native threads of the worker.", process["threads"]),
        ("gauge", "process_open_fds", "Open descriptors of the worker.", process["open_fds"]),
    ]
    copied.labelled = [
        ("counter", "psqd_reloads", "Reloads by result.", "result", {"ok": reloads.count, "failed": reloads.failures}),
        (
            "counter",
            "psqd_service_restarts",
            "Background services that failed and were started again.",
            "service",
            {service.name: float(service.restarts) for service in daemon.services},
        ),
        ("gauge", "psqd_service_up", "1 while it runs.", "service", {s.name: float(s.alive) for s in daemon.services}),
        ("gauge", "psqd_broker", "Figures of the connection to the broker.", "figure", dict(daemon.broker.stats())),
    ]
    return copied


def families(copied: Figures, let_go: Callable[[], None] = lambda: None) -> Iterator[Metric]:
    """The metrics of one scrape; their samples are made as they are written.

    Args:
        copied: Its figures.
        let_go: Called between chunks of queues.
    """
    yield _metric("gauge", "psqd_build_info", "Version of psqd.", [({"version": psq.__version__}, 1.0)])
    for kind, name, help, value in copied.single:
        yield _metric(kind, name, help, [({}, float(value))])
    for kind, name, help, label, values in copied.labelled:
        yield _metric(kind, name, help, [({label: key}, float(value)) for key, value in values.items()])

    queues = copied.queues

    def each(rows: Callable[[_Queue], Iterable[tuple[str, dict[str, str], float]]]) -> Iterator[Sample]:
        for number, queue in enumerate(queues, 1):
            for name, labels, value in rows(queue):
                yield Sample(name, labels, float(value))
            if number % CHUNK == 0:
                let_go()

    def counts(name: str, label: str, of: str) -> Iterator[Sample]:
        return each(
            lambda queue: (
                (name + "_total", {"queue": queue.name, label: key}, value) for key, value in getattr(queue, of).items()
            )
        )

    yield _lazy("counter", "psqd_tasks", "Tasks by queue and outcome.", counts("psqd_tasks", "outcome", "outcomes"))
    yield _lazy(
        "counter", "psqd_dead_letters", "Dead letters by reason.", counts("psqd_dead_letters", "reason", "dead")
    )
    for kind, suffix, rows in (("counter", "_total", _COUNTERS), ("gauge", "", _GAUGES)):
        for key, name, help in rows:
            yield _lazy(kind, name, help, each(partial(_value, key, name + suffix)))
    for key, name, help in _RECEIVES:
        yield _lazy("counter", name, help, each(partial(_receive, key, name + "_total")))
    for key, name, help in _TIMES:
        yield _lazy("histogram", name, help, each(partial(_buckets, key, name)))


_Rows = Iterable[tuple[str, dict[str, str], float]]


def _value(key: str, name: str, queue: _Queue) -> _Rows:
    return ((name, {"queue": queue.name}, queue.values[key]),)


def _receive(key: str, name: str, queue: _Queue) -> _Rows:
    return () if queue.receives is None else ((name, {"queue": queue.name}, queue.receives.get(key, 0)),)


def _buckets(key: str, name: str, queue: _Queue) -> _Rows:
    counts, total = queue.times[key]
    if not any(counts):  # nothing was observed: 60 lines less for each idle queue
        return
    count = 0
    for bound, observed in zip(_BOUNDS, counts, strict=True):
        count += observed
        yield name + "_bucket", {"queue": queue.name, "le": bound}, count
    yield name + "_sum", {"queue": queue.name}, total
    yield name + "_count", {"queue": queue.name}, count


def _metric(kind: str, name: str, help: str, values: Iterable[tuple[dict[str, str], float]]) -> Metric:
    metric = Metric(name, help, kind)
    suffix = "_total" if kind == "counter" else ""
    metric.samples = [Sample(name + suffix, labels, value) for labels, value in values]
    return metric


def _lazy(kind: str, name: str, help: str, samples: Iterator[Sample]) -> Metric:
    metric = Metric(name, help, kind)
    metric.samples = samples  # type: ignore[assignment]  # the encoders iterate once
    return metric


class _Scrape(Collector):
    """One scrape's metrics, as the encoders want them."""

    def __init__(self, copied: Figures, let_go: Callable[[], None]) -> None:
        self._copied, self._let_go = copied, let_go

    def collect(self) -> Iterator[Metric]:
        """See `families`."""
        return families(self._copied, self._let_go)


class Metrics:
    """Makes the text of ``/metrics``; its own registry, nothing global.

    Args:
        daemon: Whose figures.
    """

    def __init__(self, daemon: DaemonView) -> None:
        self._daemon = daemon
        self._lock = BoundedSemaphore()
        self._sleep = original("time", "sleep")
        self._last: dict[str, tuple[float, bytes]] = {}  # content type -> (made at, text)

    def scrape(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics as text; blocks its greenlet, not the hub.

        Scrapes at the same time, or within a second, share one.

        Args:
            accept: The request's Accept header: chooses between the Prometheus and OpenMetrics formats.

        Returns:
            The text, and its content type.
        """
        encode: Callable[[Collector], bytes] = generate_latest
        content_type = CONTENT_TYPE_PLAIN_0_0_4
        if "application/openmetrics-text" in accept:
            encode, content_type = openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST
        with self._lock:
            made_at, text = self._last.get(content_type, (0.0, b""))
            if not text or time.monotonic() - made_at > FRESH:
                scrape = _Scrape(figures(self._daemon, lambda: gevent.sleep(0)), self._let_go)
                text = get_hub().threadpool.apply(encode, (scrape,))
                self._last[content_type] = (time.monotonic(), text)
        return text, content_type

    def _let_go(self) -> None:
        self._sleep(LET_GO)
