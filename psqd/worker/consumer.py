"""One queue: receiver -> pool -> executor, and never more leased than can start soon."""

from __future__ import annotations

import logging
import time
from collections import deque

import gevent
from gevent.event import Event

from psq.brokers.base import Delivery, QueueSpec, Receiver
from psq.errors import BrokerRefused, BrokerUnavailable
from psqd.config import QueueConfig
from psqd.worker.counters import QueueCounters
from psqd.worker.executor import Executor
from psqd.worker.invocation import Invocation
from psqd.worker.pool import Pool
from psqd.worker.runtime import Runtime

__all__ = ["Consumer"]

#: Most deliveries that wait for a slot, however fast the tasks are.
MAX_PREFETCH = 1000
#: Messages over which the mean of their sizes rises, and falls.
RISES, FALLS = 10, 50
#: What waited so long for a slot is given back, seconds.
PATIENCE = 2.0
#: What waited so long to run alone is given back for a while: others may have time for it; seconds.
TRIAL_PATIENCE, TRIAL_PAUSE = 10.0, 1.0
#: Time for which pulls in flight may answer when a queue stops, seconds: cancelled ones strand messages for a lease.
GRACE = 0.5
#: Tasks that have run and whose state or next attempt is refused for now: with more, nothing is received.
MAX_STUCK = 1000
#: Pauses between attempts to declare a queue while the broker is away, seconds.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0

log = logging.getLogger("psqd")


class Consumer:
    """Serves one queue; all its parts run on the hub.

    Args:
        name: The queue's name.
        config: Its settings.
        spec: What the broker must know of it.
        runtime: What the worker's parts share.
        invocation: Calls its functions.
        active: Consumers that have work, looked at by the daemon at each beat; this adds itself.

    Attributes:
        state: ``stopped``, ``declaring``, ``running``, ``paused`` or ``draining``.
        problem: Why it does not receive, "" when it does.
    """

    def __init__(
        self,
        name: str,
        config: QueueConfig,
        spec: QueueSpec,
        runtime: Runtime,
        invocation: Invocation,
        active: set[Consumer],
    ) -> None:
        self.name, self.config, self.spec, self.runtime = name, config, spec, runtime
        self.counters = QueueCounters()
        self.executor = Executor(name, config, runtime, invocation, self.counters, self._again, self._ended_one)
        self.pool = Pool(name, config.concurrency, self._run)
        self.receiver: Receiver | None = None
        self.state, self.problem = "stopped", ""
        self.declared = Event()  # set after the first attempt, whatever came of it
        self.ended = Event()  # set after each task that ends while nothing is received
        self.idle = Event()  # of this drain: set when nothing is received any more, and nothing runs
        self.refused: BrokerRefused | None = None
        self._active = active
        self._finished = 0
        self._window: deque[int] = deque([0] * 4, maxlen=4)  # tasks finished at each of the last beats
        self._seen = 0
        self._rate = 0  # tasks finished within the last second
        self._prefetch = 0
        self._mean_bytes = 0.0  # of a message; rises faster than it falls, since memory is at stake
        self._declaring: gevent.Greenlet[[], None] | None = None
        self._stopped = Event()  # of the last receiver: set when no receive is in flight any more
        self._stopped.set()

    # what status and metrics look at

    @property
    def concurrency(self) -> int:
        """Tasks at a time."""
        return self.pool.size

    @property
    def running(self) -> int:
        """Tasks that run, those that run apart included."""
        return self.pool.running + self.executor.apart

    @property
    def prefetched(self) -> int:
        """Deliveries that wait for a slot."""
        return len(self.pool.ready)

    @property
    def held(self) -> int:
        """Deliveries that run, wait for a slot, or for their turn to run alone."""
        return self.running + len(self.pool.ready) + self.runtime.trials.waiting(self.executor)

    # life

    def start(self) -> None:
        """Declare the queue and begin to receive; returns at once, repeats while the broker is away. Idempotent."""
        if self.state in ("stopped", "paused"):
            self.state = "declaring"
            self._declaring = gevent.spawn(self._declare)
            self._declaring.name = f"psqd declare {self.name}"

    def _declare(self) -> None:
        pause = FIRST_PAUSE
        try:
            while self._declares():
                self._try_to_receive()
                self.declared.set()
                if self._declares():
                    gevent.sleep(pause)
                    pause = min(LONGEST_PAUSE, pause * 2)
        finally:
            self.declared.set()

    def _declares(self) -> bool:
        """Not paused meanwhile, nor paused and started again: then another greenlet does it."""
        return self.state == "declaring" and self._declaring is gevent.getcurrent()

    def _try_to_receive(self) -> None:
        try:
            for warning in self.runtime.broker.declare(self.spec):
                log.warning("queue %s: %s", self.name, warning)
            if self._declares():
                self._receive()
        except Exception as error:
            if self._declares():  # else it is of no interest any more, as when a drain closes the connection
                self._tell(error)

    def _tell(self, error: Exception) -> None:
        if isinstance(error, BrokerUnavailable):
            if not self.problem:
                log.warning("queue %s waits for the broker: %s", self.name, error)
            self.problem = f"the broker can't be reached: {error}"
        elif isinstance(error, BrokerRefused):
            if str(error) not in self.problem:
                log.error("queue %s can't be had: %s", self.name, error)
            self.problem, self.refused = f"refused: {error}", error
        else:
            log.error("queue %s: declaring it failed", self.name, exc_info=error)
            self.problem = f"{type(error).__name__}: {error}"

    def _receive(self) -> None:
        receiver = self.runtime.broker.receiver(self.spec, self._deliver)
        receiver.start()
        if self.problem:
            log.info("queue %s is served now", self.name)
        self.problem, self.refused = "", None
        self.pool.size = self.config.concurrency
        self.state, self.receiver = "running", receiver
        self._ask()

    def resize(self, concurrency: int) -> None:
        """Another number of tasks at a time; nothing is stopped."""
        self.pool.size = concurrency
        self._ask()

    def configure(self, config: QueueConfig, invocation: Invocation) -> None:
        """Take new settings from the next delivery on."""
        self.config = config
        self.executor.configure(config, invocation)
        if self.state == "running" and config.concurrency != self.pool.size:
            self.resize(config.concurrency)

    def pause(self, state: str = "paused") -> Event:
        """Receive no more and give back what has not begun; what runs goes on.

        Returns:
            Set when no receive is in flight any more.
        """
        receiver, self.receiver = self.receiver, None
        self.state = state
        self.runtime.held.give_back([*self._take_back(), *self.runtime.trials.take_back(self.executor)])
        if receiver is not None:
            self._stopped = Event()
            receiver.stop(GRACE, self._stopped.set)
        return self._stopped  # of the receiver before, where it was paused just now

    def drain(self) -> Event:
        """As `pause`, for good: no new task starts from now on. `idle` is set when the last has ended."""
        stopped = self.pause("draining")
        if self.idle.is_set():
            self.idle = Event()
        gevent.spawn(self._watch_idle, stopped, self.idle).name = f"psqd drain {self.name}"
        return stopped

    def _watch_idle(self, stopped: Event, idle: Event) -> None:
        stopped.wait()
        while self.idle is idle and self.running:
            self.ended.clear()
            self.ended.wait()
        idle.set()

    def adopt(self, config: QueueConfig, invocation: Invocation) -> None:
        """Take up again while it drains (removed from the file and added again); to be started. What runs goes on."""
        self.configure(config, invocation)
        self.state = "stopped"
        # Whoever waits for the last task looks again, and finds that this drain is over.
        idle, self.idle = self.idle, Event()
        idle.set()
        self.ended.set()

    def drop(self, delivery: Delivery) -> bool:
        """Its lease is lost: let go of it, if it waits for a slot. False where it runs, or is not of this consumer."""
        if not self.pool.discard(delivery) and not self.runtime.trials.discard(delivery):
            return False
        self.runtime.held.release(delivery)
        return True

    # receiving

    def _deliver(self, deliveries: list[Delivery]) -> None:
        held, now = self.runtime.held, time.monotonic()
        size = 0
        for delivery in deliveries:
            delivery.arrived_at = now
            size += len(delivery.data)
        count = len(deliveries)
        seen, mean = self.counters.received, size / count
        self.counters.received = seen + count
        self.counters.received_bytes += size
        memory = min(seen + count, RISES if mean > self._mean_bytes else FALLS)
        self._mean_bytes += (mean - self._mean_bytes) * min(1.0, count / memory)
        if self.state != "running":
            self.counters.given_back += count
            held.give_back(deliveries)
            return
        # Nobody kept these leases while the hub stood still: others may have the messages by now.
        first = deliveries[0]  # its lease is the subscription's, which an operator may have made
        if self.runtime.stall.blocked_since(first.asked_at) > (first.lease_until - first.asked_at) / 2:
            self.counters.given_back += count
            held.give_back(deliveries)
            self._ask()
            log.warning("queue %s: %d deliveries came while the hub stood still; given back", self.name, count)
            return
        held.take(deliveries)
        self._active.add(self)
        self.pool.put(deliveries)
        self._ask()

    def _again(self, delivery: Delivery) -> None:
        """A delivery that was held because it was due within a second."""
        if delivery.slot < 0:
            return
        if self.state == "running":
            delivery.arrived_at = time.monotonic()
            self.pool.put([delivery])
        else:
            self.runtime.held.give_back([delivery])

    def _run(self, delivery: Delivery) -> None:
        self.executor.run(delivery)
        self._finished += 1
        self._ended_one()

    def _ended_one(self) -> None:
        if self.receiver is None:  # it drains or pauses: somebody may wait for the last task
            self.ended.set()
        else:
            self._ask()

    def _ask(self) -> None:
        """Room for what can start now, and for what will be able to start within a second."""
        receiver = self.receiver
        if receiver is not None:
            pool = self.pool
            room = pool.size + self._prefetch - pool.running - len(pool.ready)
            if self.runtime.choked or self.executor.stuck >= MAX_STUCK:
                room = 0  # what has run can't be written: more of it would only fill the memory
            receiver.ask(max(0, room))

    def _take_back(self, older_than: float | None = None) -> list[Delivery]:
        taken = self.pool.take_back(older_than)
        self.counters.given_back += len(taken)
        return taken

    def beat(self, now: float) -> bool:
        """Four times a second while there is work.

        Args:
            now: Monotonic.

        Returns:
            False when there is nothing left to look at.
        """
        done = self._finished - self._seen
        self._seen = self._finished
        self._window.append(done)
        self._rate = rate = sum(self._window)
        before, self._prefetch = self._prefetch, int(min(MAX_PREFETCH, rate) * self.runtime.prefetch_share)
        if late := self._take_back(now - PATIENCE):
            self.runtime.held.give_back(late)
            log.info("queue %s: %d tasks waited %g s for a slot; others may have them", self.name, len(late), PATIENCE)
        if late := self.runtime.trials.take_back(self.executor, now - TRIAL_PATIENCE):
            self.runtime.held.park(late, TRIAL_PAUSE)
        if rate or before or self._prefetch or self.executor.stuck:  # also when there was room and is none any more
            self._ask()
        return bool(rate or self.held or self.executor.stuck)

    def ask_again(self) -> None:
        """What `runtime.choked` says has changed."""
        self._ask()

    def prefetch_bytes(self) -> float:
        """Bytes that would wait for a slot, by the running mean, if there were no limit of them."""
        return min(MAX_PREFETCH, self._rate) * self._mean_bytes
