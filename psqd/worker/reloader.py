"""SIGHUP: read, validate, compare, prepare everything that can fail, then apply the difference in place.

| meanwhile           | what happens                                                     |
|---------------------|------------------------------------------------------------------|
| HUP during a reload | coalesces: one more reload follows, with the newest file          |
| HUP during drain    | ignored                                                          |
| TERM during reload  | wins: the reload is dropped before it applied, or is complete    |
| removed, then added | the queue that still drains is adopted                           |
| anything fails      | nothing changes; the old config runs on, the error is shown      |
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from psq.errors import ConfigError, PsqError
from psq.functions import Allowed
from psqd.config import Config, HttpConfig
from psqd.worker.consumer import Consumer
from psqd.worker.contexts import check_contexts
from psqd.worker.invocation import Invocation
from psqd.worker.logwriter import must_open
from psqd.worker.reload import Plan, plan

if TYPE_CHECKING:
    from psqd.worker.daemon import Daemon

__all__ = ["Reloader"]

#: Declares of added queues at a time: admin calls have a small quota.
DECLARES = 10

log = logging.getLogger("psqd")


class Reloader:
    """Reloads the config of a daemon.

    Attributes:
        count: Reloads that were applied.
        failures: Reloads that changed nothing because something was wrong.
        last_at: Unix time of the last one, 0.0 for none.
        last_error: What was wrong with the last one, "" for nothing.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._again = False
        self.count, self.failures, self.last_at, self.last_error = 0, 0, 0.0, ""

    def request(self) -> None:
        """Reload; returns at once."""
        if self._daemon.state == "draining":
            log.info("reload ignored: the daemon stops")
        elif self._greenlet is not None and not self._greenlet.dead:
            self._again = True
        else:
            self._greenlet = gevent.spawn(self._run)
            self._greenlet.name = "psqd reload"

    def cancel(self) -> None:
        """Drop a reload that has not applied yet. Applying does not yield, so it is never cut in two."""
        self._again = False
        if self._greenlet is not None:  # a module that is imported just now may swallow it: the drain goes on
            self._greenlet.kill(timeout=1.0)

    def _run(self) -> None:
        while True:
            self._again = False
            try:
                self._reload()
            except Exception as error:  # a bug of ours
                self._failed(error)
            if not self._again:
                return

    def _reload(self) -> None:
        daemon = self._daemon
        try:
            old, new = daemon.config, daemon.load()
            changes = plan(old, new)
            effective = self._effective(new, changes)
            allowed = daemon.make_allowed(effective)
            allowed.import_all()
            consumers, invocations = self._prepare(effective, allowed)
        except Exception as error:  # tasks' modules may raise anything while they are imported
            self._failed(error)
            return
        if daemon.state == "draining":
            return
        self._apply(effective, allowed, consumers, invocations)
        self.count += 1
        self.last_at, self.last_error = time.time(), ""
        log.info("reloaded: %s", changes.summary())
        for key in changes.restart:
            log.warning("%s needs a restart: the old value stays until then", key)
        if "http" in changes.settings:
            self._serve_http(effective, old.http)

    def _serve_http(self, new: Config, old: HttpConfig | None) -> None:
        """The one change that can fail when it is applied: then it is as if the file had not asked for it."""
        try:
            self._daemon.serve_http(new)
        except ConfigError as error:
            self.last_error = str(error)
            self._daemon.config = new.model_copy(update={"http": old})  # so that the next HUP tries again
            log.error("%s; the rest of the reload is in place, the next SIGHUP tries this again", error)

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self.last_at, self.last_error = time.time(), f"{type(error).__name__}: {error}"
        known = isinstance(error, PsqError)
        log.error("reload failed, the old config runs on: %s", error, exc_info=None if known else error)

    def _effective(self, new: Config, changes: Plan) -> Config:
        """The new config, with the old values where a restart is needed."""
        old = self._daemon.config
        return new.model_copy(update={key: getattr(old, key) for key in changes.restart if key in Config.model_fields})

    def _prepare(self, config: Config, allowed: Allowed) -> tuple[dict[str, Consumer], dict[str, Invocation]]:
        """Everything that can fail: contexts, names, and the declaration of queues that are new or differ in kind."""
        daemon = self._daemon
        check_contexts(config)
        if config.logging.file and config.logging.file != daemon.config.logging.file:
            must_open(config.logging.file)
        fresh: dict[str, Consumer] = {}
        invocations: dict[str, Invocation] = {}
        for name, settings in config.queues.items():
            daemon.broker.check_queue_name(name)
            running = daemon.consumers.get(name)
            if running is None or running.spec != daemon.queues.spec(name, settings):
                fresh[name] = daemon.make_consumer(config, name, allowed)
            else:
                invocations[name] = daemon.queues.invocation(name, settings, allowed)
        limit = BoundedSemaphore(DECLARES)

        def declare(consumer: Consumer) -> None:
            with limit:
                daemon.broker.declare(consumer.spec)

        jobs = [gevent.spawn(declare, consumer) for consumer in fresh.values()]
        try:
            gevent.joinall(jobs, raise_error=True)
        finally:
            gevent.killall(jobs, block=False)
        return fresh, invocations

    def _apply(
        self, config: Config, allowed: Allowed, fresh: dict[str, Consumer], invocations: dict[str, Invocation]
    ) -> None:
        """Does not yield: a TERM comes before it or after it."""
        daemon, runtime = self._daemon, self._daemon.runtime
        daemon.config = config
        runtime.allowed = allowed
        runtime.max_strikes = config.max_strikes
        runtime.unknown_function_grace = config.unknown_function_grace
        runtime.max_prefetch_bytes = config.max_prefetch_bytes
        runtime.task_log.all = config.logging.tasks == "all"
        daemon.logs.reconfigure(config.logging)
        for name, consumer in list(daemon.consumers.items()):
            if name not in config.queues or name in fresh:
                self._retire(name, consumer)
        for name, invocation in invocations.items():
            known = daemon.consumers.get(name)
            if known is None:  # its last task ended while this reload was prepared
                fresh[name] = daemon.make_consumer(config, name, allowed)
            elif known.state == "draining":
                daemon.retiring.discard(known)
                known.adopt(config.queues[name], invocation)
                self._begin(known)
            else:
                known.configure(config.queues[name], invocation)
        for name, consumer in fresh.items():
            daemon.consumers[name] = consumer
            self._begin(consumer)
        runtime.trials.renew()
        daemon.size_threads(config)
        daemon.tell_keeper(config)

    def _begin(self, consumer: Consumer) -> None:
        if self._daemon.state == "paused":
            consumer.state = "paused"
        else:
            consumer.start()

    def _retire(self, name: str, consumer: Consumer) -> None:
        """A queue that is not in the file any more: its tasks end, then it is forgotten."""
        if consumer.state == "draining":
            return
        self._daemon.retiring.add(consumer)
        consumer.drain()
        gevent.spawn(self._forget, name, consumer, consumer.idle).name = f"psqd drain {name}"

    def _forget(self, name: str, consumer: Consumer, idle: Event) -> None:
        idle.wait()
        daemon = self._daemon
        if consumer.idle is not idle:
            return  # adopted meanwhile
        daemon.retiring.discard(consumer)
        if daemon.consumers.get(name) is consumer:
            del daemon.consumers[name]
            log.info("queue %s is gone: all that it held has ended", name)
