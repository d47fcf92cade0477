"""Contexts around tasks: entered in order, left whatever happens; Flask under psqd and psqworker."""

from __future__ import annotations

import pytest

import psq
from tests.acceptance.processes import wait_until
from tests.integration import jobs
from tests.integration.daemons import Site

TRACED = {"queues": {"default": {"extra_context": "tests.integration.jobs:outer_and_inner"}}, "shutdown_timeout": 3}


def steps(place: Site) -> list[list[str]]:
    """(what, which, error) of each step of the contexts."""
    return [[line[0], *line[4:]] for line in place.journal("enter", "leave")]


def left(error: str) -> list[list[str]]:
    return [["enter", "outer"], ["enter", "inner"], ["leave", "inner", error], ["leave", "outer", error]]


def test_contexts_are_left_when_the_task_returns(sqlite_site: Site) -> None:
    sqlite_site.daemon("a", TRACED).start()
    psq.Queue(psq.connect(sqlite_site.broker)).enqueue(jobs.adder, 1, 2).result(timeout=20)
    assert steps(sqlite_site) == left("-")


@pytest.mark.parametrize(
    ("function", "arguments", "error"), [("fails", ("x",), "ValueError"), ("exits", (), "SystemExit")]
)
def test_contexts_are_left_when_the_task_raises(
    sqlite_site: Site, function: str, arguments: tuple[str, ...], error: str
) -> None:
    sqlite_site.daemon("a", TRACED).start()
    with pytest.raises(psq.TaskFailed):
        psq.Queue(psq.connect(sqlite_site.broker)).enqueue(getattr(jobs, function), *arguments).result(timeout=20)
    assert steps(sqlite_site) == left(error)


def test_contexts_are_left_when_the_time_is_up(sqlite_site: Site) -> None:
    sqlite_site.daemon("a", TRACED).start()
    with pytest.raises(psq.TaskFailed):
        psq.Queue(psq.connect(sqlite_site.broker)).options(time_limit=0.2).enqueue(jobs.nap, 30).result(timeout=20)
    assert steps(sqlite_site) == left("TimeLimitExceeded")


def test_contexts_are_left_when_the_daemon_interrupts_the_task(sqlite_site: Site) -> None:
    daemon = sqlite_site.daemon("a", TRACED).start()
    psq.Queue(psq.connect(sqlite_site.broker)).enqueue(jobs.nap, 30)
    sqlite_site.wait_journal("start", 1, 20)
    assert daemon.stop() == 0
    assert steps(sqlite_site) == left("TaskInterrupted")


def test_flask_is_there_under_psqd(sqlite_site: Site) -> None:
    config = {
        "queues": {"default": {"extra_context": "tests.integration.flask_place:app.app_context"}},
        "imports": ["tests.integration.jobs"],
    }
    sqlite_site.daemon("a", config).start()
    result = psq.Queue(psq.connect(sqlite_site.broker)).enqueue(jobs.context_of_flask)
    assert result.result(timeout=20) == "shop"


def test_flask_is_there_under_psqworker(place: Site) -> None:
    worker = place.worker("w", "tests.integration.flask_place.q", imports=["tests.integration.jobs"])
    result = psq.Queue(psq.connect(place.broker), "web", storage=place.storage).enqueue(jobs.context_of_flask)
    assert result.result(timeout=30) == "shop"
    assert worker.stop() == 0
    place.nothing_left()


def test_psqworker_takes_a_callable_that_makes_the_queue(sqlite_site: Site) -> None:
    worker = sqlite_site.worker("w", "tests.integration.flask_place.make_queue", imports=["tests.integration.jobs"])
    result = psq.Queue(psq.connect(sqlite_site.broker), "web").enqueue(jobs.adder, 2, 3)
    assert result.result(timeout=30) == 5
    wait_until(lambda: "ready: 1 queues" in worker.log, 5, worker.log)
