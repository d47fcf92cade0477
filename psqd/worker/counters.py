"""Plain counters of a queue, cheap enough for every task; metrics and status read them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

__all__ = ["BUCKETS", "Histogram", "QueueCounters"]

#: Upper bounds of the time histograms, seconds.
BUCKETS: tuple[float, ...] = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600)


class Histogram:
    """Counts of observations by bucket; the last bucket is +Inf."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


class QueueCounters:
    """What happened on one queue since the worker started.

    Attributes:
        outcomes: Tasks by outcome: finished, failed, retried, dead, interrupted, expired.
        dead: Dead letters by reason.
        received: Deliveries.
        received_bytes: Their bytes.
        given_back: Deliveries given back without a start.
        parked: Deliveries parked until their time.
        scheduled: Deliveries moved to the schedule in storage.
        lost: Leases lost while we held them.
        acked: Acks that were answered.
        ack_errors: Acks that were refused.
        unknown: Deliveries held back because their function or version is not known yet.
        wait: Seconds from due (or enqueue) to start.
        run: Seconds from start to end.
        total: Seconds from enqueue to end.
    """

    __slots__ = (
        "ack_errors",
        "acked",
        "dead",
        "given_back",
        "lost",
        "outcomes",
        "parked",
        "received",
        "received_bytes",
        "run",
        "scheduled",
        "total",
        "unknown",
        "wait",
    )

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.dead: Counter[str] = Counter()
        self.received = self.received_bytes = self.given_back = self.parked = self.scheduled = 0
        self.lost = self.acked = self.ack_errors = self.unknown = 0
        self.wait, self.run, self.total = Histogram(), Histogram(), Histogram()
