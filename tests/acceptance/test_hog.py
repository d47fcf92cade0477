"""A task that does not yield: its neighbours keep their leases, and a stop, or the keeper, ends it in time."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

import psq
from tests.acceptance.processes import wait_until
from tests.front.client import Front
from tests.integration import hogs, jobs
from tests.integration.daemons import Psqd, Site

#: Three ack deadlines, at least.
ACK_DEADLINE, HOG = 10, 31
#: Neighbours of a hog.
NEIGHBOURS = 10
IMPORTS = ["tests.integration.hogs", "tests.integration.jobs"]


class Stage:
    """A daemon for each kind of hog, with a queue of its own; all run at once."""

    def __init__(
        self,
        place: Site,
        hows: Sequence[str],
        slots: int,
        queue: Mapping[str, Any],
        accounts: Mapping[str, str] | None = None,
        **config: Any,
    ) -> None:
        self.place, self.hows = place, hows
        client = psq.connect(place.broker)
        self.queues = {how: psq.Queue(client, how, storage=place.storage) for how in hows}
        self.daemons: dict[str, Psqd] = {}
        for how in hows:
            settings = {"queues": {how: {"concurrency": slots, **queue}}, "imports": IMPORTS, **config}
            environment = {"GOOGLE_APPLICATION_CREDENTIALS": accounts[how]} if accounts else {}
            self.daemons[how] = place.daemon(how, settings, **environment).start(wait=False)
        for daemon in self.daemons.values():
            daemon.wait_line(r"worker \d+ is ready", 60)  # its keeper has loaded all that it needs
        self.hogs: dict[str, psq.TaskResult] = {}

    def fill(self, naps: Sequence[float], seconds: float | None) -> dict[str, list[psq.TaskResult]]:
        """Neighbours that sleep, by kind of hog; then the hogs."""
        slept = {
            how: queue.enqueue_many([(hogs.nap, (nap,), {}) for nap in naps]) for how, queue in self.queues.items()
        }
        self.place.wait_journal("start", len(naps) * len(self.hows), 60)
        self.hogs = {how: queue.enqueue(hogs.hog, how, seconds) for how, queue in self.queues.items()}
        self.place.wait_journal("start", (len(naps) + 1) * len(self.hows), 60)
        return slept

    def other(self, **queue: Any) -> Psqd:
        """A daemon with free slots for all that comes its way."""
        queues = {how: {"concurrency": 50, **queue} for how in self.hows}
        return self.place.daemon("other", {"queues": queues, "imports": IMPORTS}).start()

    def instants(self, kind: str) -> dict[str, list[float]]:
        """Monotonic instants of the journal's lines of a kind, by task id."""
        found: dict[str, list[float]] = {}
        for line in self.place.journal(kind):
            found.setdefault(line[1], []).append(float(line[3]))
        return found


@pytest.mark.slow
@pytest.mark.alone  # three hogs leave nothing of two cores to tests beside them
@pytest.mark.timeout(400)
def test_no_lease_is_lost_while_a_task_hogs_the_cpu_for_three_ack_deadlines(front_site: Site, front: Front) -> None:
    """On SQLite the same keeper keeps leases: see test_killed.py for a worker that is stopped."""
    place, hows = front_site, ("python", "regex", "sum")
    # The tokens of two end meanwhile, as google-auth knows; that of the third is revoked, which nobody tells it.
    lives = {"python": 20.0, "regex": None, "sum": 20.0}
    accounts = {how: front.account(how, token_seconds=life) for how, life in lives.items()}
    stage = Stage(place, hows, 50, {"ack_deadline": ACK_DEADLINE, "lease": ACK_DEADLINE}, accounts)
    # Some would end in the midst of it: their results and acks are sent when it is over.
    slept = stage.fill([5.0] * NEIGHBOURS + [HOG + 5.0] * NEIGHBOURS, HOG)
    front.revoke_tokens()
    other = stage.other(ack_deadline=ACK_DEADLINE)
    # Some of these are handed to a poll of a worker whose hub stands still: nobody keeps their leases.
    late = [queue.enqueue(jobs.noted) for queue in stage.queues.values() for _ in range(NEIGHBOURS)]

    place.wait_journal("end", len(hows) * (2 * NEIGHBOURS + 1), 6 * HOG)
    for how, hog in stage.hogs.items():
        assert hog.result(timeout=3 * HOG) == how, place.logs()
    for how, results in slept.items():
        assert [r.result(timeout=60) for r in results] == [0] * len(results), how
    assert [r.result(timeout=60) for r in late] == [0] * len(late)
    began, ended = stage.instants("start"), stage.instants("end")
    lasted = {how: ended[hog.id][0] - began[hog.id][0] for how, hog in stage.hogs.items()}
    assert min(lasted.values()) > 3 * ACK_DEADLINE, lasted
    assert front.stats()["errors"]["ModifyAckDeadline:UNAUTHENTICATED"] >= 1  # the keeper's
    assert not place.journal("again"), "some task was delivered elsewhere\n" + place.logs()
    assert set(place.runs("run").values()) == {1}
    for how, hog in stage.hogs.items():  # the operator's view: while it lasts, where Python code runs; and at its end
        assert how != "python" or f"task {hog.id} (tests.integration.hogs:hog) does not yield" in stage.daemons[how].log
        assert re.search(rf"task {hog.id} .* kept the hub for [3-9]\d\.", stage.daemons[how].log)
    for daemon in (*stage.daemons.values(), other):
        assert daemon.stop() == 0
        assert not re.search("(is|are) lost", daemon.log)
    place.nothing_left()


@pytest.mark.slow
def test_a_stop_during_a_hog_is_in_time_and_gives_everything_back(front_site: Site, front: Front) -> None:
    place, timeout = front_site, 2.0
    # With all slots taken no poll is out, and a lease that is not given back would be over in a minute.
    stage = Stage(place, hogs.HOWS, NEIGHBOURS + 1, {"ack_deadline": 60, "lease": 60}, shutdown_timeout=timeout)
    slept = stage.fill([300.0] * NEIGHBOURS, None)
    front.revoke_tokens()  # what is given back needs another
    asked_at = time.monotonic()
    for daemon in stage.daemons.values():
        daemon.signal(signal.SIGTERM)
    for how, daemon in stage.daemons.items():
        assert daemon.wait(timeout + 5 - (time.monotonic() - asked_at)) == 1, how
        assert f"{NEIGHBOURS + 1} deliveries are given back, 0 struck" in daemon.log
        assert "in hog\n" in daemon.log, "its stack"
    print(f"\nall ended after {time.monotonic() - asked_at:.2f} s")

    other = stage.other()
    ready_at = time.monotonic()
    wanted = {r.id for results in slept.values() for r in results} | {hog.id for hog in stage.hogs.values()}
    wait_until(lambda: set(place.runs("again")) == wanted, 10, place.logs)
    print(f"all started again after {time.monotonic() - ready_at:.2f} s")
    assert {line[4] for line in place.journal("again")} == {"0"}, "strikes"
    assert [hog.result(timeout=30) for hog in stage.hogs.values()] == ["again"] * len(stage.hows)
    assert other.stop() == 0
    place.nothing_left()


@pytest.mark.slow
def test_a_hog_that_ends_during_a_stop_leaves_time_for_an_orderly_end(sqlite_site: Site) -> None:
    place = sqlite_site
    stage = Stage(place, ("python",), NEIGHBOURS + 1, {"ack_deadline": 60, "lease": 60}, shutdown_timeout=8)
    slept = stage.fill([300.0] * NEIGHBOURS, 6.0)
    daemon = stage.daemons["python"]
    assert daemon.stop(8 + 5) == 0, daemon.log
    assert stage.hogs["python"].result(timeout=0) == "python"
    assert f"{NEIGHBOURS} tasks did not end in time: interrupted and given back" in daemon.log
    other = stage.other()
    assert [task.result(timeout=10) for task in slept["python"]] == [0] * NEIGHBOURS
    assert other.stop() == 0
    place.nothing_left()


@pytest.mark.slow
def test_a_hub_that_stands_still_for_too_long_ends_its_worker_and_its_tasks_run_elsewhere(front_site: Site) -> None:
    place, limit = front_site, 5.0
    stage = Stage(place, ("deadlock", "sum"), NEIGHBOURS + 1, {"ack_deadline": 60, "lease": 60}, hub_stall_limit=limit)
    other = stage.other()
    other.signal(signal.SIGTSTP)
    other.wait_line("paused")
    slept = stage.fill([300.0] * NEIGHBOURS, None)
    other.signal(signal.SIGCONT)
    wanted = {r.id for results in slept.values() for r in results} | {hog.id for hog in stage.hogs.values()}
    wait_until(lambda: set(place.runs("again")) == wanted, limit + 20, place.logs)
    began, again = stage.instants("start"), stage.instants("again")
    for how, hog in stage.hogs.items():
        after = [again[id][0] - began[hog.id][0] for id in (hog.id, *(r.id for r in slept[how]))]
        print(f"\n{how}: first {min(after):.2f} s, last {max(after):.2f} s")
        assert max(after) <= limit + 2.0
        daemon = stage.daemons[how]
        assert f"{NEIGHBOURS + 1} deliveries are given back, 0 struck" in daemon.log
        assert "hub_stall_limit" in daemon.log
        assert "in hog\n" in daemon.log, "its stack"
        daemon.wait_line(r"worker \d+ is ready", 30, since=_line(daemon, "ended"))
    assert {line[4] for line in place.journal("again")} == {"0"}, "strikes"
    for daemon in (*stage.daemons.values(), other):
        assert daemon.stop() == 0
    place.nothing_left()


def _line(daemon: Psqd, text: str) -> int:
    """Number of the first line with a text."""
    return next(number for number, line in enumerate(daemon.lines) if text in line)
