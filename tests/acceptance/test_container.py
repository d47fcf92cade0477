"""psqd as the first process of a container: it reaps what others leave, and what a hard stop cuts off comes again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence

import psutil
import pytest

import psq
from tests.acceptance.processes import wait_until
from tests.integration import jobs
from tests.integration.daemons import Psqd, Site
from tests.parts import need

CONTAINER = ["unshare", "-pf"]
#: Seconds of a lease here.
LEASE = 10
SLOTS = 40
LONG = {"concurrency": SLOTS, "lease": LEASE}
CONFIG = {
    "queues": {"long": LONG, "orphans": {"concurrency": 1, "lease": LEASE}},
    "logging": {"tasks": "failures"},
}


def _last_start(place: Site, instant: float, ids: Sequence[str]) -> float:
    """Seconds from an instant until the last of these tasks has started after it."""
    firsts: dict[str, float] = {}
    for line in place.journal("start"):
        if line[1] in ids and float(line[3]) > instant:
            firsts.setdefault(line[1], float(line[3]) - instant)
    return max(firsts.values()) if len(firsts) == len(ids) else float("inf")


def _wait_started(place: Site, instant: float, ids: Sequence[str], seconds: float) -> float:
    wait_until(lambda: _last_start(place, instant, ids) < float("inf"), seconds, place.logs)
    return _last_start(place, instant, ids)


def _zombies(keeper: psutil.Process) -> list[psutil.Process]:
    return [child for child in keeper.children(recursive=True) if child.status() == psutil.STATUS_ZOMBIE]


def _workers(keeper: psutil.Process) -> list[psutil.Process]:
    """Those of its children that it started itself: with a session of their own."""
    return [child for child in keeper.children() if child.status() != psutil.STATUS_ZOMBIE and _leads(child.pid)]


def _leads(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


@pytest.fixture
def where(front_site: Site) -> Site:
    if subprocess.run([*CONTAINER, "true"], capture_output=True).returncode:
        need("process namespaces", "unshare -pf is refused: it needs root")
    return front_site


@pytest.mark.slow
def test_a_container_loses_its_worker_and_then_is_stopped_hard(where: Site) -> None:
    first: Psqd = where.daemon("first", CONFIG)
    first.prefix = CONTAINER
    second = where.daemon("second", CONFIG | {"queues": {"other": {}}})
    for daemon in (first, second):
        daemon.start(wait=False)
    client = psq.connect(where.broker)
    long, orphans = (psq.Queue(client, name, storage=where.storage) for name in ("long", "orphans"))
    gate = where.folder / "gate"
    ids = [r.id for r in long.enqueue_many([(jobs.until, (str(gate),), {}) for _ in range(SLOTS)])]
    orphans.enqueue(jobs.orphan)
    where.wait_journal("start", SLOTS, 60)
    where.wait_journal("orphan", 1, 60)
    second.wait_line(r"ready: \d+ queues")
    # Not the orphans: one whose ack was under way when its worker died runs again, and is to do so in the container.
    second.configure(CONFIG | {"queues": {"long": LONG}})
    second.signal(signal.SIGHUP)
    second.wait_line("reloaded")

    [keeper] = psutil.Process(first.pid).children()
    [worker] = _workers(keeper)
    assert os.readlink(f"/proc/{keeper.pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    killed_at = time.monotonic()
    worker.kill()
    wait_until(lambda: worker.pid not in (child.pid for child in _workers(keeper)), 1, where.logs)
    wait_until(lambda: _workers(keeper), 1, where.logs)
    new_after = time.monotonic() - killed_at
    back_after = _wait_started(where, killed_at, ids, 20)
    wait_until(lambda: not _zombies(keeper), 5, lambda: f"{_zombies(keeper)}\n{where.logs()}")
    reaped_after = time.monotonic() - killed_at

    # The slots of the second are full by now: what comes is the container's.
    more = [r.id for r in long.enqueue_many([(jobs.until, (str(gate),), {}) for _ in range(SLOTS // 2)])]
    _wait_started(where, 0.0, more, 60)
    stopped_at = time.monotonic()
    keeper.kill()  # the first process: the kernel ends all others in the container
    gate.touch()
    hard_after = _wait_started(where, stopped_at, more, LEASE + 20)
    print(
        f"\n{where.broker}: worker killed: a new one after {new_after:.2f} s, tasks started elsewhere after"
        f" {back_after:.2f} s, orphans reaped after {reaped_after:.2f} s; stopped hard: {hard_after:.2f} s"
    )
    everything = {*ids, *more}
    where.wait_journal("end", len(everything), 60)
    assert set(where.runs("end")) == everything
    first.wait(10)
    assert second.stop() == 0
    where.nothing_left()
    assert new_after <= 1.0
    assert back_after <= 1.0
    assert hard_after <= LEASE + 5
