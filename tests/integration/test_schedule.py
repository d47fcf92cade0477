"""What is due beyond a park waits in the storage's schedule, or is parked again and again where there is none."""

from __future__ import annotations

import time

import pytest

import psq
from tests.integration import jobs
from tests.integration.daemons import Site

QUEUES = {"queues": {"default": {}}, "imports": ["tests.integration.jobs", "tests.integration.short_parks"]}


@pytest.mark.parametrize("site", ["pubsub_site", "front_site"])
@pytest.mark.parametrize("scheduled", [True, False], ids=["schedule", "no storage"])
def test_what_is_due_beyond_a_park_is_run_once_and_never_early(
    request: pytest.FixtureRequest, site: str, scheduled: bool
) -> None:
    place: Site = request.getfixturevalue(site)
    config = QUEUES if scheduled else {**QUEUES, "storage": "none"}
    q = psq.Queue(psq.connect(place.broker), storage=place.storage if scheduled else None)
    first, other = (place.daemon(name, config).start() for name in "ab")
    unix, began = time.time(), time.monotonic()
    sent = {q.enqueue_at(unix + pause, jobs.noted).id: began + pause for pause in (8.0, 8.5, 9.0, 9.5)}
    asked = q.enqueue(jobs.asks_again, 2, 6.0).id
    place.wait_runs(asked, 1, 20)
    if scheduled:  # what is in the schedule outlives every daemon
        assert [first.stop(), other.stop()] == [0, 0]
        place.daemon("c", config).start()
    for task_id in sent:
        place.wait_runs(task_id, 1, 60)
    place.wait_runs(asked, 2, 60)
    starts = {line[1]: float(line[3]) for line in place.journal("run")}
    assert all(starts[task_id] >= due - 0.01 for task_id, due in sent.items())
    first_run, again = (float(line[3]) for line in place.journal("run") if line[1] == asked)
    assert again - first_run >= 6.0
    assert place.runs() == {**dict.fromkeys(sent, 1), asked: 2}
