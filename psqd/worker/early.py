"""``ack: early``: at most once. Acked, and the ack answered, just before the start."""

from __future__ import annotations

import logging

from psq.brokers.base import Delivery
from psq.concurrency import Waiter
from psqd.worker.counters import QueueCounters
from psqd.worker.runtime import Runtime

__all__ = ["acked_early"]

log = logging.getLogger("psqd")


def acked_early(delivery: Delivery, runtime: Runtime, counters: QueueCounters) -> bool:
    """Ack a delivery and wait for the answer; from then on there is no lease and no strike.

    Blocks its greenlet for a round trip.

    Returns:
        True if it may start. False if the ack was refused: whoever has the message now runs it.
    """
    waiter = Waiter()
    runtime.broker.ack(delivery, lambda _, error: waiter.set(error))
    waiter.wait()
    error: Exception | None = waiter.value
    runtime.held.release(delivery)
    if error is None:
        counters.acked += 1
        return True
    counters.ack_errors += 1
    log.warning("an early ack on queue %s was not taken, the task is left to others: %s", delivery.queue.name, error)
    return False
