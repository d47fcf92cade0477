"""The worker's daemon: owns the services; start, reload, pause, drain, stop, in that order on the page."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gevent
from gevent import get_hub
from gevent.event import Event
from gevent.queue import SimpleQueue

from psq.brokers.base import Broker
from psq.dead import dead_letters
from psq.errors import ConfigError
from psq.functions import Allowed
from psq.storages.base import Storage
from psqd.config import Config, QueueConfig
from psqd.worker.consumer import Consumer
from psqd.worker.dump import dump_everything
from psqd.worker.held import Held
from psqd.worker.members import Members
from psqd.worker.orphan import Orphan
from psqd.worker.queues import QueueFactory
from psqd.worker.reloader import Reloader
from psqd.worker.runtime import Runtime
from psqd.worker.scheduler import Scheduler, Sweeper
from psqd.worker.service import Service
from psqd.worker.stall import Stall
from psqd.worker.threads import Threads
from psqd.worker.trial_process import TrialProcess
from psqd.worker.trials import Trials

__all__ = ["Daemon", "Parts"]

#: Exit codes (docs/signals.md).
STOPPED, REFUSED = 0, 3
#: Of `shutdown_timeout`, what is kept for interrupting tasks and giving back, half each; at most half of it, seconds.
LAST_STEPS = 2.0
#: Seconds beyond `shutdown_timeout` for letting go of broker and storage; the keeper waits two.
LAST_CALLS = 1.0
#: Bytes of results that may wait for the storage: with more, nothing is received.
MAX_PENDING = 64 << 20

log = logging.getLogger("psqd")


@dataclass(slots=True)
class Parts:
    """What the daemon is made of; put together in `psqd.worker.start`."""

    config: Config
    load: Callable[[], Config]
    config_path: str
    broker: Broker
    storage: Storage | None
    link: Any
    logs: Any
    task_log: Any
    make_allowed: Callable[[Config], Allowed]
    allowed: Allowed
    queue: Any = None
    argv: Sequence[str] = ()


class Daemon:
    """One worker process: many queues over one broker.

    Attributes:
        state: ``starting``, ``running``, ``paused`` or ``draining``.
        consumers: By queue name, those that drain included.
        retiring: Consumers that a reload has ended and whose last tasks still run.
    """

    def __init__(self, parts: Parts) -> None:
        self.config, self.config_path, self.load = parts.config, parts.config_path, parts.load
        self.broker, self.storage, self.link, self.logs = parts.broker, parts.storage, parts.link, parts.logs
        self.state, self.started_at, self.broker_problem, self.keeper_alive = "starting", time.time(), "", True
        self.make_allowed = parts.make_allowed
        self.consumers: dict[str, Consumer] = {}
        self.retiring: set[Consumer] = set()
        self.active: set[Consumer] = set()
        self.stall = Stall(self.link.beat, self._beat)
        held = Held(self.link, self.broker, carry=self.broker.scheme == "pubsub" and self.config.max_strikes > 0)
        loop = get_hub().loop

        def dispatch(function: Callable[[], None]) -> None:
            loop.run_callback_threadsafe(function)

        self.broker.dispatch = dispatch
        if self.storage is not None:
            self.storage.dispatch = dispatch
        self.runtime = Runtime(
            self.broker,
            self.storage,
            dead_letters(self.broker, self.storage),
            held,
            self.stall,
            parts.allowed,
            parts.task_log,
            self.config.max_strikes,
            self.config.unknown_function_grace,
            self.config.max_prefetch_bytes,
        )
        alone, together = (
            TrialProcess(parts.argv, self._tell_trial, lambda: self.config.hub_stall_limit) for _ in range(2)
        )
        self.runtime.trials = Trials(held, alone, together)
        self.queues = QueueFactory(self.broker, self.storage, Members(self.broker.url), parts.queue)
        self.services: list[Service] = [self.stall]
        if self.storage is not None:
            self.services.append(Sweeper(self.storage))
            if self.storage.can_schedule and not self.broker.schedules:
                self.services.append(Scheduler(self.broker, self.storage, self.runtime.worker))
        self.reloads = Reloader(self)
        self.web: Any = None
        self.threads = Threads(get_hub().threadpool)
        self._commands: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._ticked_at = 0.0
        self._told_ready = True  # False: it was told that it is not, yet

    # start

    def run(self) -> int:
        """Serve until it is told to stop.

        Returns:
            The exit code.
        """
        loop = get_hub().loop
        self.link.listen(
            lambda message: loop.run_callback_threadsafe(self._commands.put, message),
            Orphan(self).keeper_gone,
        )
        self.size_threads(self.config)
        self.tell_keeper(self.config)
        self.serve_http(self.config)  # its port may be taken: before anything is received
        for service in self.services:
            service.start()
        for name in self.config.queues:
            self.consumers[name] = self.make_consumer(self.config, name, self.runtime.allowed)
            self.consumers[name].start()
        gevent.spawn(self._first_declared).name = "psqd start"
        while True:
            message = self._commands.get()
            match message.get("op"):
                case "drain":
                    return self.drain(message.get("at"))
                case "refused":
                    self.drain()  # other queues may have been served meanwhile
                    return REFUSED
            try:
                self._obey(message)
            except Exception:  # a log file that can't be opened must not cost the tasks that run
                log.exception("%s failed", message.get("op"))

    def _first_declared(self) -> None:
        for consumer in list(self.consumers.values()):
            consumer.declared.wait()
        refused = [consumer for consumer in self.consumers.values() if consumer.refused is not None]
        if refused:
            self._commands.put({"op": "refused"})
            return
        if self.state == "starting":
            self.state = "running"
        self.link.send({"op": "ready"})
        waiting = [consumer.name for consumer in self.consumers.values() if consumer.problem]
        if waiting:
            many, count, names = len(waiting), len(self.consumers), ", ".join(waiting[:10])
            log.warning(
                "not ready yet: %d of %d queues wait for the broker, %s: %s", many, count, self.broker.url, names
            )
            self._told_ready = False
        else:
            self._tell_ready()

    def _tell_ready(self) -> None:
        self._told_ready = True
        log.info("ready: %d queues on %s", len(self.consumers), self.broker.url)

    def make_consumer(self, config: Config, name: str, allowed: Allowed) -> Consumer:
        """A consumer for a queue of a config, not started."""
        settings = config.queues[name]
        spec = self.queues.spec(name, settings)
        invocation = self.queues.invocation(name, settings, allowed)
        return Consumer(name, settings, spec, self.runtime, invocation, self.active)

    def tell_keeper(self, config: Config) -> None:
        """What the keeper must know: limits, and how long leases of each source are."""
        sources = {}
        for name, settings in config.queues.items():
            sources[self.broker.source(self.queues.spec(name, settings))] = lease_lengths(settings)
        for name, consumer in self.consumers.items():
            if name not in config.queues:  # it still drains
                sources.setdefault(self.broker.source(consumer.spec), lease_lengths(consumer.config))
        self.link.send(
            {
                "op": "settings",
                "shutdown_timeout": config.shutdown_timeout,
                "hub_stall_limit": config.hub_stall_limit,
                "max_strikes": config.max_strikes,
                "log_format": config.logging.format,
                "log_level": config.logging.level,
                "lease_spec": self.broker.lease_spec(),
                "sources": sources,
            }
        )

    def _tell_trial(self, pid: int, runs: bool) -> None:
        """The keeper ends such a process when we die."""
        self.link.send({"op": "trial", "pid": pid, "runs": runs})

    def size_threads(self, config: Config) -> None:
        """A native thread for each task that may block in C."""
        self.threads.size(sum(queue.concurrency for queue in config.queues.values()))

    def serve_http(self, config: Config) -> None:
        """Start, stop or move the HTTP server, as the config says."""
        old, self.web = self.web, None
        if old is not None:
            old.stop(1.0)
        if config.http is not None:
            from psqd.worker.web import serve

            new = serve(self, config.http)
            try:
                new.start()
            except ConfigError:
                if old is not None:  # a reload: the old address goes on
                    old.start()
                    self.web = old
                raise
            self.web = new

    # while it runs

    def _beat(self, now: float) -> None:
        self.runtime.share_prefetch(sum(consumer.prefetch_bytes() for consumer in self.active))
        for consumer in list(self.active):
            if not consumer.beat(now):
                self.active.discard(consumer)
        if now - self._ticked_at >= 1.0:
            self._ticked_at = now
            if not self._told_ready and not any(consumer.problem for consumer in self.consumers.values()):
                self._tell_ready()
            self.threads.look(now)
            self.broker.tick()
            if self.storage is not None:
                self.storage.tick()
        choked = self.storage is not None and self.storage.pending_bytes() > MAX_PENDING
        if choked != self.runtime.choked:
            self.runtime.choked = choked
            for consumer in self.consumers.values():
                consumer.ask_again()
            if choked:
                log.warning("the storage does not keep up: nothing is received until it does")

    def _obey(self, message: dict[str, Any]) -> None:
        match message.get("op"):
            case "reload":
                self.reloads.request()
            case "pause":
                self._pause()
            case "continue":
                self._continue()
            case "reopen_logs":
                self.logs.reopen()
                self.runtime.trials.renew()
            case "dump":
                dump_everything(self)
            case "lost":
                self._lost(message["slots"], message["keys"])

    def _pause(self) -> None:
        if self.state in ("starting", "running"):
            self.state = "paused"
            log.info("paused: no task is received until SIGCONT; what runs goes on")
            for consumer in self.consumers.values():
                if consumer.state in ("running", "declaring"):
                    consumer.pause()

    def _continue(self) -> None:
        if self.state == "paused":
            self.state = "running"
            log.info("receiving again")
            for consumer in self.consumers.values():
                if consumer.state == "paused":
                    consumer.start()

    def _lost(self, slots: list[int], keys: list[str]) -> None:
        for delivery in self.runtime.held.mark_lost(slots, keys):
            name = delivery.queue.name
            consumer = self.consumers.get(name)
            if consumer is not None:
                consumer.counters.lost += 1
            if any(one.drop(delivery) for one in {*self.consumers.values(), *self.retiring} if one.name == name):
                log.warning("a lease on queue %s is lost before its task began: it is left to others", name)
            else:
                log.warning("a lease on queue %s is lost: its task may run twice", name)

    # the end

    def drain(self, asked_at: float | None = None) -> int:
        """Stop in order, against one deadline; returns the exit code.

        Args:
            asked_at: Monotonic instant from which the time counts, as the keeper's does: the hub may have
                stood still since. None: now.
        """
        timeout = self.config.shutdown_timeout
        began = time.monotonic() if asked_at is None else asked_at
        last_steps = min(LAST_STEPS, timeout / 2)
        deadline = began + timeout - last_steps
        self.state = "draining"
        self.reloads.cancel()
        self.link.send({"op": "stopping"})
        consumers = list({*self.consumers.values(), *self.retiring})
        running = sum(consumer.running for consumer in consumers)
        log.info("stopping: %d tasks run, they have %.0f s", running, max(0.0, began + timeout - time.monotonic()))
        # No more pulls, what has not begun is given back, and what pulls in flight still bring.
        for stopped in [consumer.drain() for consumer in consumers]:
            stopped.wait(max(0.0, deadline - time.monotonic()))
        for consumer in consumers:
            consumer.pool.join(deadline - time.monotonic())
        self.runtime.trials.join(deadline - time.monotonic())
        left = [consumer for consumer in consumers if consumer.running]
        if left:
            log.warning(
                "%d tasks did not end in time: interrupted and given back", sum(consumer.running for consumer in left)
            )
            end = time.monotonic() + last_steps / 2
            self.runtime.trials.interrupt("the worker stops")
            gevent.joinall([gevent.spawn(c.pool.kill, end - time.monotonic()) for c in left])
        self._settle(time.monotonic() + last_steps / 2)
        self._give_up(max(began + timeout, time.monotonic()) + LAST_CALLS)
        log.info("stopped")
        return STOPPED

    def _settle(self, deadline: float) -> None:
        """Wait until results are written and acks answered; give back what is still held."""
        held, half = self.runtime.held, (deadline - time.monotonic()) / 2
        # Acks and results of tasks that have just ended are on their way: they release by themselves.
        pending = self.storage.pending_bytes if self.storage is not None else lambda: 0
        self._wait_until(lambda: not len(held), deadline - half)
        if pending():
            self._wait_until(lambda: not len(held) or not pending(), deadline - half / 2)
        held.give_back(held.everything())
        self._wait_until(lambda: not len(held), deadline)

    @staticmethod
    def _wait_until(condition: Callable[[], bool], deadline: float) -> None:
        pause = Event()  # never set: only its timeout counts
        while not condition() and time.monotonic() < deadline:
            pause.wait(0.01)

    def _give_up(self, deadline: float) -> None:
        """Close everything. Nothing is waited for beyond the deadline: broker or storage may be away."""
        self.runtime.trials.close()
        jobs = [gevent.spawn(service.stop, 0.5) for service in self.services]
        if self.web is not None:
            jobs.append(gevent.spawn(self.web.stop, 0.5))
        gevent.joinall(jobs, timeout=0.6)
        for part in (self.broker, self.storage):
            if part is not None:
                closing = gevent.spawn(_close, part)
                closing.join(max(0.1, deadline - time.monotonic()))
                if not closing.dead:
                    log.warning("%s does not answer: it is not waited for", part.url)


def _close(part: Broker | Storage) -> None:
    try:
        part.close()
    except Exception as error:
        log.warning("closing: %s", error)


def lease_lengths(settings: QueueConfig) -> dict[str, float]:
    """What the keeper must know of a queue's leases, seconds."""
    return {"lease": settings.lease, "ack_deadline": settings.ack_deadline, "max_lease": settings.lease_limit}
