"""Results: one that can't be kept fails its own task alone, a second run changes nothing, another storage is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import psq
from tests.acceptance.processes import wait_until
from tests.front.client import Front
from tests.integration import jobs
from tests.integration.daemons import Site

QUEUES = {"queues": {"default": {"concurrency": 50}}}


@pytest.fixture(params=["sqlite", "front"])
def place(request: pytest.FixtureRequest) -> Site:
    """The bare emulator shows nothing here that the front does not."""
    found: Site = request.getfixturevalue(f"{request.param}_site")
    return found


@pytest.fixture
def queue_of(place: Site) -> Callable[..., psq.Queue]:
    """Makes the sender's queues."""
    client = psq.connect(place.broker)

    def make() -> psq.Queue:
        return psq.Queue(client, storage=place.storage)

    return make


def test_results_that_can_not_be_kept_fail_their_own_tasks_and_no_others(
    place: Site, queue_of: Callable[..., psq.Queue]
) -> None:
    q = queue_of()
    good: list[tuple[Callable[..., object], tuple[object, ...], dict[str, object]]] = [
        (jobs.adder, (n, n), {}) for n in range(40)
    ]
    # Enqueued before the daemon starts, so that all end together and their results go in one request.
    results = q.enqueue_many([*good[:20], (jobs.big, (33_000_000,), {}), (jobs.unstorable, (), {}), *good[20:]])
    large, unsayable = results.pop(20), results.pop(20)
    daemon = place.daemon("a", QUEUES).start()
    with pytest.raises(psq.StorageRefused, match="bytes") as caught:
        large.result(timeout=40)
    assert isinstance(caught.value, psq.TaskFailed)
    with pytest.raises(psq.TaskFailed, match="result of"):
        unsayable.result(timeout=20)
    assert [r.result(timeout=20) for r in results] == [2 * n for n in range(40)]
    daemon.wait_line(rf"the result of task {large.id} can't be stored: .* bytes")
    assert daemon.stop() == 0


def test_a_second_run_of_a_task_does_not_change_its_result(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    place.daemon("a", QUEUES).start()
    q = queue_of().options(task_id="twice")
    first = q.enqueue(jobs.unlike).result(timeout=20)
    q.enqueue(jobs.unlike)
    place.wait_runs("twice", 2, 20)
    marker = queue_of().enqueue(jobs.noted)  # its result is written after that of the second run
    assert marker.result(timeout=20) == 0
    assert next(line[4] for line in place.journal("run") if line[1] == "twice") == first
    assert psq.TaskResult("twice", queue_of()).result(timeout=5) == first


@pytest.mark.parametrize("storage", ["another", "none"])
def test_a_daemon_with_another_storage_than_the_sender_says_so_once(
    place: Site, queue_of: Callable[..., psq.Queue], storage: str
) -> None:
    theirs = f"sqlite://{place.folder}/another.db" if storage == "another" else "none"
    daemon = place.daemon("a", {**QUEUES, "storage": theirs}).start()
    for n in range(3):
        queue_of().enqueue(jobs.noted, n)
    place.wait_journal("run", 3, 20)
    daemon.wait_line(r"tasks of queue default come from a sender that reads results in .*waits in vain; give both")
    assert daemon.stop() == 0
    assert daemon.log.count("waits in vain") == 1


def test_a_storage_that_refuses_everything_for_a_while_costs_no_result(front_site: Site, front: Front) -> None:
    """As when somebody takes away the daemon's role for a minute: nothing is wrong with what the task returned."""
    daemon = front_site.daemon("a", QUEUES).start()
    q = psq.Queue(psq.connect(front_site.broker), storage=front_site.storage)
    rule = front.rule("Commit", status="PERMISSION_DENIED", details="Missing or insufficient permissions.")
    result = q.enqueue(jobs.noted)
    daemon.wait_line(r"could not store its state .*PERMISSION_DENIED")
    front.remove(rule)
    assert result.result(timeout=30) == 0
    wait_until(lambda: front_site.runs()[result.id] == 1, 5, front_site.logs)
    assert daemon.stop() == 0
