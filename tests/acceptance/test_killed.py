"""A killed worker's, or a killed daemon's, tasks are started again at once; nothing is lost, nothing is left over."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import defaultdict

import psutil
import pytest

import psq
from tests.acceptance.processes import wait_gone, wait_until
from tests.integration import jobs
from tests.integration.daemons import Psqd, Site

LONG = 200
#: Seconds of a lease here: what nobody gives back comes again after it, at the latest.
LEASE = 10
#: A daemon whose slots are full has no pull out, so nothing is stranded in one.
BUSY = {
    "queues": {
        "long": {"concurrency": LONG, "lease": LEASE},
        "busy": {"concurrency": 4, "lease": LEASE},
        "parents": {"concurrency": 1, "lease": LEASE},
    },
    "logging": {"tasks": "failures"},
}


def _starts_after(place: Site, instant: float, ids: list[str]) -> dict[str, float]:
    """Seconds from an instant to the next start of each task."""
    wanted = set(ids)
    found: dict[str, float] = defaultdict(lambda: float("inf"))
    for line in place.journal("start"):
        if line[1] in wanted and float(line[3]) > instant:
            found[line[1]] = min(found[line[1]], float(line[3]) - instant)
    return found


def _started_again(place: Site, killed_at: float, ids: list[str], seconds: float) -> list[float]:
    """Wait until all have started again; how long after the kill, in order."""
    wait_until(
        lambda: len(_starts_after(place, killed_at, ids)) == len(ids),
        seconds,
        lambda: f"{len(_starts_after(place, killed_at, ids))} of {len(ids)} started again\n{place.logs()}",
    )
    return sorted(_starts_after(place, killed_at, ids).values())


def _kill(daemon: Psqd, victim: str) -> float:
    """SIGKILL; the monotonic instant of it."""
    worker = daemon.worker_pid()
    killed_at = time.monotonic()
    match victim:
        case "worker":
            os.kill(worker, signal.SIGKILL)
        case "keeper":
            os.kill(daemon.pid, signal.SIGKILL)
        case "keeper's group":
            assert os.getpgid(daemon.pid) == daemon.pid
            os.killpg(daemon.pid, signal.SIGKILL)
        case "both":
            os.kill(daemon.pid, signal.SIGSTOP)  # it must not get a word in between
            os.kill(worker, signal.SIGKILL)
            os.kill(daemon.pid, signal.SIGKILL)
    return killed_at


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    ("broker", "victim"),
    # The keeper's group holds the keeper alone. Where both die, only leases bring the tasks back: see for SQLite
    # tests/contract/test_sqlite_processes.py.
    [("sqlite", "worker"), ("sqlite", "keeper"), ("front", "worker"), ("front", "keeper's group"), ("front", "both")],
)
def test_tasks_of_a_killed_daemon_start_again_within_seconds_and_all_are_done(
    request: pytest.FixtureRequest, broker: str, victim: str
) -> None:
    place: Site = request.getfixturevalue(f"{broker}_site")
    first = place.daemon("first", BUSY)
    second = place.daemon("second", {"queues": {"busy": {"concurrency": 4}}})
    first.prefix = ["setsid"]
    for daemon in (first, second):
        daemon.start(wait=False)
    client = psq.connect(place.broker)
    long, busy, parents = (psq.Queue(client, name, storage=place.storage) for name in ("long", "busy", "parents"))
    gate = place.folder / "gate"
    ids = [r.id for r in long.enqueue_many([(jobs.until, (str(gate),), {}) for _ in range(LONG)])]
    parent = parents.enqueue(jobs.parent, str(gate))
    place.wait_journal("start", LONG + 1, 60)
    quick = [r.id for r in busy.enqueue_many([(jobs.nap, (0.02,), {}) for _ in range(400)])]
    second.wait_line(r"ready: \d+ queues")
    second.configure(BUSY)
    second.signal(signal.SIGHUP)
    second.wait_line("reloaded")
    worker = first.worker_pid()
    killed_at = _kill(first, victim)

    again = _started_again(place, killed_at, ids, 30)
    print(f"\n{place.broker.partition(':')[0]}, {victim} killed: first {again[0]:.3f} s, last {again[-1]:.3f} s")
    if victim != "both":  # then nobody is left to end it
        [child] = [int(line[4]) for line in place.journal("child") if int(line[2]) == worker]
        wait_gone([worker, child], killed_at + 3)

    gate.touch()
    everything = {*ids, *quick, parent.id}
    place.wait_journal("end", len(everything), 90)
    assert set(place.runs("end")) == everything
    if victim == "worker":
        first.wait_line(r"worker .* ended: SIGKILL", 5)
        assert first.stop() == 0
    assert second.stop() == 0
    if victim != "both":
        place.nothing_left()
    if victim == "both":
        assert again[0] > LEASE / 2, "somebody has given it back, so this is not the case that it says"
        assert again[-1] <= LEASE + 5, place.logs()
    else:
        assert again[0] <= 1.0, place.logs()
        assert again[-1] <= 3.0


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "keeper"])
def test_with_free_slots_they_start_again_within_the_ack_deadline_and_three_seconds(
    front_site: Site, victim: str
) -> None:
    """A daemon with free slots has a poll out; the emulator gives an orphaned one a delivery for a whole lease."""
    place = front_site
    config = {"queues": {"long": {"concurrency": 50, "ack_deadline": 10}}}
    first = place.daemon("first", config).start()
    q = psq.Queue(psq.connect(place.broker), "long", storage=place.storage)
    gate = place.folder / "gate"
    ids = [r.id for r in q.enqueue_many([(jobs.until, (str(gate),), {}) for _ in range(20)])]
    place.wait_journal("start", 20, 60)
    place.daemon("second", config).start()
    killed_at = _kill(first, victim)
    last = _started_again(place, killed_at, ids, 60)[-1]
    print(f"\n{victim} killed, free slots: last {last:.3f} s")
    assert last <= 10 + 3, place.logs()
    gate.touch()
    place.wait_journal("end", 20, 60)


@pytest.mark.slow
def test_a_worker_that_is_stopped_for_three_leases_loses_nothing_and_runs_nothing_twice(strict_place: Site) -> None:
    place = strict_place
    config = {"queues": {"long": {"concurrency": 50, "ack_deadline": LEASE, "lease": LEASE}}}
    first = place.daemon("first", config)
    second = place.daemon("second", {"queues": {"other": {}}})
    for daemon in (first, second):
        daemon.start(wait=False)
    q = psq.Queue(psq.connect(place.broker), "long", storage=place.storage)
    gate = place.folder / "gate"
    held = [r.id for r in q.enqueue_many([(jobs.until, (str(gate),), {}) for _ in range(20)])]
    place.wait_journal("start", 20, 60)
    second.wait_line(r"ready: \d+ queues")
    worker = first.worker_pid()
    os.kill(worker, signal.SIGSTOP)
    stopped_at = time.monotonic()
    # With thirty free slots, a pull of the stopped worker is out. What it brings, nobody extends.
    quick = [r.id for r in q.enqueue_many([(jobs.noted, (n,), {}) for n in range(20)])]
    second.configure(config)
    second.signal(signal.SIGHUP)
    second.wait_line("reloaded")
    place.wait_journal("run", len(quick), LEASE + 10)
    elsewhere_after = time.monotonic() - stopped_at
    time.sleep(max(0.0, stopped_at + 3 * LEASE + 1 - time.monotonic()))  # the claim is about time itself
    os.kill(worker, signal.SIGCONT)
    gate.touch()
    place.wait_journal("end", len(held), 30)
    print(
        f"\n{place.broker.partition(':')[0]}: what came to a stopped worker ran elsewhere after {elsewhere_after:.1f} s"
    )
    assert first.worker_pid() == worker, first.log
    assert first.stop() == 0
    assert second.stop() == 0
    place.nothing_left()
    assert place.runs("start") == dict.fromkeys(held, 1), place.logs()
    assert place.runs("run") == dict.fromkeys(quick, 1), place.logs()


def test_a_task_that_kills_its_worker_is_a_dead_letter_after_three_deaths(place: Site) -> None:
    daemon = place.daemon("a", {"queues": {"default": {"concurrency": 10}}}).start()
    q = psq.Queue(psq.connect(place.broker), storage=place.storage)
    killer = q.enqueue(jobs.suicide, int(signal.SIGKILL))
    with pytest.raises(psq.TaskFailed, match="worker died"):
        killer.result(timeout=60)
    assert q.storage is not None
    [letter] = q.storage.get_dead(killer.id)
    assert letter.reason == "worker died"
    assert [death["signal"] for death in letter.deaths] == ["SIGKILL"] * 3
    assert q.enqueue(jobs.adder, 1, 2).result(timeout=20) == 3
    assert daemon.stop() == 0
    place.nothing_left()


@pytest.mark.slow
@pytest.mark.timeout(300)  # three workers start one after another, and the services before them
def test_a_worker_out_of_memory_ends_and_what_it_held_is_done(front_site: Site) -> None:
    """A limit as of `ulimit -v`: a task sits on all there is, and other allocations fail, psqd's own too."""
    place = front_site
    daemon = place.daemon("a", {"queues": {"default": {"concurrency": 50}}, "logging": {"tasks": "failures"}}).start()
    worker = psutil.Process(daemon.worker_pid())
    limit = worker.memory_info().vms + (200 << 20)
    for process in (worker, psutil.Process(daemon.pid)):  # the next workers inherit it
        process.rlimit(psutil.RLIMIT_AS, (limit, limit))
    q = psq.Queue(psq.connect(place.broker), storage=place.storage)
    hoarder = q.enqueue(jobs.hoards, 3, 100_000)
    place.wait_journal("start", 1, 20)
    others = []
    for _ in range(30):  # for as long as it sits there
        others += q.enqueue_many([(jobs.nap, (0.02,), {}) for _ in range(10)])
        time.sleep(0.05)
    assert [r.result(timeout=60) for r in others] == ["slept"] * len(others)
    try:
        hoarder.result(timeout=60)
        ended = "it ended"
    except psq.TaskFailed as error:
        ended = str(error)
    deaths = len(re.findall(r"worker \d+ ended: (?:out of memory|SIG)", daemon.log))
    print(f"\n{deaths} workers died of it; the hoarder: {ended}")
    mark = daemon.mark()
    daemon.signal(signal.SIGUSR2)
    daemon.wait_line("holds nothing", since=mark)
    assert daemon.stop() == 0
    place.nothing_left()
