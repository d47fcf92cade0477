"""Sixty and a thousand queues in one daemon, each with its own poll out: all are served, and it costs little."""

from __future__ import annotations

import time

import psutil
import pytest

import psq
from psq.google.channel import connections_for
from tests.acceptance.processes import wait_until
from tests.front.client import Front
from tests.integration import jobs
from tests.integration.daemons import Psqd, Site

QUEUES = [f"q{number}" for number in range(60)]


@pytest.mark.slow
@pytest.mark.alone
def test_a_task_on_each_of_sixty_queues_is_served_within_two_seconds(sqlite_site: Site) -> None:
    """Through the front, see below."""
    place = sqlite_site
    daemon = place.daemon("a", {"queues": {name: {"concurrency": 2} for name in QUEUES}}).start()
    client = psq.connect(place.broker)
    sent: dict[str, float] = {}
    for name in QUEUES:
        began = time.monotonic()
        sent[psq.Queue(client, name, storage=None).enqueue(jobs.noted, name).id] = began
    place.wait_journal("run", len(QUEUES), 60)
    waits = sorted(float(line[3]) - sent[line[1]] for line in place.journal("run"))
    print(f"\nmedian {waits[30]:.3f} s, last {waits[-1]:.3f} s")
    assert waits[-1] <= 2.0, daemon.log
    assert daemon.stop() == 0
    place.nothing_left()


class Worker:
    """A daemon's worker, as the system sees it."""

    def __init__(self, daemon: Psqd, front: Front) -> None:
        self.process = psutil.Process(daemon.worker_pid())
        self._port = int(front.endpoint.rpartition(":")[2])

    @property
    def threads(self) -> int:
        """Native threads."""
        return self.process.num_threads()

    @property
    def connections(self) -> int:
        """Connections to the front, by /proc/net/tcp and tcp6."""
        return sum(
            1
            for one in self.process.net_connections("tcp")
            if one.status == psutil.CONN_ESTABLISHED and one.raddr and one.raddr.port == self._port
        )

    def cpu(self, seconds: float) -> float:
        """Share of one core that it takes in the next seconds."""
        clock = ~self.process.pid << 3 | 2  # clock_getcpuclockid(3): nanoseconds, where /proc/PID/stat goes by 10 ms
        before, began = time.clock_gettime(clock), time.monotonic()
        time.sleep(seconds)
        return (time.clock_gettime(clock) - before) / (time.monotonic() - began)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(500)
@pytest.mark.parametrize("count", [60, 1000])
def test_very_many_queues_are_served_by_few_connections_and_threads_and_cost_nothing_while_nothing_comes(
    front_site: Site, front: Front, count: int
) -> None:
    queues = {f"n{number}": {"concurrency": 2} for number in range(count)}
    config = {
        "queues": queues,
        "storage": "none",
        "imports": ["tests.integration.many_queues_jobs", "tests.integration.jobs"],
    }
    front.manners(staggered=True)  # some polls end in any few seconds, as many as in the long run
    daemon = front_site.daemon("a", config).start(wait=False)
    began = time.monotonic()
    daemon.wait_line(rf"ready: {count} queues", 180)
    print(f"\n{count} queues: ready after {time.monotonic() - began:.1f} s")
    wait_until(lambda: front.stats()["polls"] >= count, 30, lambda: f"{front.stats()}\n{daemon.log}")
    queue = psq.Queue(psq.connect(front_site.broker), "n0", storage=None)

    # Each is served.
    queue.enqueue("tests.integration.many_queues_jobs:fans_out", "n", count)
    front_site.wait_journal("run", count, 120)
    front_site.wait_journal("sent", 1, 30)
    (sent,) = front_site.journal("sent")
    last = max(float(line[3]) for line in front_site.journal("run"))
    print(f"sent in {float(sent[4]):.2f} s, the last ran {last - float(sent[3]):.2f} s later")
    assert last - float(sent[3]) <= 2.0, daemon.log

    # Nothing comes: all poll, and an ack is answered at once.
    wait_until(lambda: front.stats()["polls"] >= count, 30, lambda: f"{front.stats()}\n{daemon.log}")
    worker = Worker(daemon, front)
    before = front.stats()["calls"]["Pull"]
    cpu = worker.cpu(20.0 if count == 1000 else 8.0)
    pulls = front.stats()["calls"]["Pull"] - before
    assert count < 1000 or pulls >= 100, "no polls ended: that is not what it costs in the long run"
    queue.enqueue("tests.integration.many_queues_jobs:times_acks", 20)
    front_site.wait_journal("acks", 1, 30)
    acks = sorted(float(word) for word in front_site.journal("acks")[0][4:])
    stats, connections, threads = front.stats(), worker.connections, worker.threads
    memory = worker.process.memory_info().rss / 1e6
    print(f"{connections} connections, {threads} threads, {memory:.0f} MB, CPU {cpu:.2%} with {pulls} pulls")
    print(f"an ack is answered after {acks[0]:.4f} to {acks[-1]:.4f} s")
    print(f"polls at most {stats['polls_most']}, by queue at most {max(stats['polls_most_by'].values())}")
    # 2 % is the aim, and 60 queues keep it. A thousand do not yet: 2.7 to 3.0 % on a quiet machine, 2.3 ms of CPU for
    # each poll that ends. This bound only holds the line.
    print(f"aim for CPU: 2 %, {'kept' if cpu <= 0.02 else 'NOT kept'}")
    assert cpu <= (0.02 if count < 1000 else 0.05)
    assert threads <= 16
    assert count / 100 <= connections <= connections_for(count)
    assert acks[len(acks) // 2] < 0.1, acks
    assert max(stats["polls_most_by"].values()) == 1
    assert stats["polls_most"] <= count
    assert daemon.stop() == 0
    front_site.nothing_left()
