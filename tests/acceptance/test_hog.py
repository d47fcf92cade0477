"""A task that does not yield: the leases of its neighbours are kept all the same."""

from __future__ import annotations

import pytest

import psq
from tests.integration import jobs
from tests.integration.daemons import Site

#: Three ack deadlines of 10 s.
HOG = 31


@pytest.mark.slow
def test_no_lease_is_lost_while_a_task_hogs_the_cpu_for_three_ack_deadlines(place: Site) -> None:
    config = {"queues": {"default": {"concurrency": 50, "ack_deadline": 10, "lease": 10}}}
    first = place.daemon("first", config).start()
    q = psq.Queue(psq.connect(place.broker), storage=place.storage)
    naps = q.enqueue_many([(jobs.nap, (HOG + 5,), {}) for _ in range(40)])
    place.wait_journal("start", 40, 30)
    hog = q.enqueue(jobs.hog, HOG)
    place.wait_journal("start", 41, 30)
    second = place.daemon("second", config).start()
    # The second daemon stands ready with free slots for all of it.
    assert hog.result(timeout=HOG + 60) == "python"
    assert [r.result(timeout=60) for r in naps] == ["slept"] * 40
    assert set(place.runs("start").values()) == {1}, "some task was delivered elsewhere\n" + place.logs()
    assert first.stop() == 0
    assert second.stop() == 0
    place.nothing_left()
