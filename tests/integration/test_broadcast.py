"""Broadcast queues: every worker gets a copy, names are stable, a restart finds what came meanwhile."""

from __future__ import annotations

import psq
from tests.acceptance.processes import wait_until
from tests.integration import jobs
from tests.integration.daemons import Site

EACH = {"queues": {"fleet": {"type": "broadcast"}}}
HOST = {"queues": {"fleet": {"type": "broadcast", "scope": "host"}}}


def fleet(place: Site) -> psq.BroadcastQueue:
    return psq.BroadcastQueue(psq.connect(place.broker), "fleet")


def test_every_worker_runs_a_copy(place: Site) -> None:
    daemons = [place.daemon(name, EACH).start() for name in "abc"]
    sent = fleet(place).enqueue(jobs.noted)
    place.wait_runs(sent.id, 3, 20)
    assert {line[2] for line in place.journal("run")} == {str(daemon.worker_pid()) for daemon in daemons}


def test_the_sender_reads_the_result_of_the_worker_that_ended_first(place: Site) -> None:
    for name in "ab":
        place.daemon(name, EACH).start()
    q = psq.BroadcastQueue(psq.connect(place.broker), "fleet", storage=place.storage)
    sent = q.enqueue(jobs.noted, 1, 2)
    assert sent.result(timeout=20) == 2
    place.wait_runs(sent.id, 2, 20)
    assert q.storage is not None
    storage = q.storage

    def each() -> list[str]:
        return sorted(record.id.partition("@")[0] for record in storage.find(queue="fleet", state="finished"))

    wait_until(lambda: each() == [sent.id] * 3, 10, lambda: str(each()))


def test_with_scope_host_every_machine_runs_it_once(place: Site) -> None:
    for name in "ab":
        place.daemon(name, HOST).start()
    first = fleet(place).enqueue(jobs.noted)
    second = fleet(place).enqueue(jobs.noted)
    place.wait_runs(first.id, 1, 20)
    place.wait_runs(second.id, 1, 20)
    for daemon in place.daemons:
        assert daemon.stop() == 0
    assert place.runs() == {first.id: 1, second.id: 1}


def test_a_restarted_worker_finds_what_came_meanwhile(place: Site) -> None:
    assert place.daemon("a", EACH).start().stop() == 0
    sent = fleet(place).enqueue(jobs.noted)
    place.daemon("b", EACH).start()
    place.wait_runs(sent.id, 1, 30)


def test_on_drain_delete_leaves_nothing_behind(place: Site) -> None:
    config = {"queues": {"fleet": {"type": "broadcast", "on_drain": "delete"}}}
    assert place.daemon("a", config).start().stop() == 0
    missed = fleet(place).enqueue(jobs.noted)
    place.daemon("b", config).start()
    seen = fleet(place).enqueue(jobs.noted)
    place.wait_runs(seen.id, 1, 30)
    assert missed.id not in place.runs()


def test_a_failing_copy_is_retried_by_its_own_worker_alone(place: Site) -> None:
    config = {"queues": {"fleet": {"type": "broadcast", "retries": 2, "retry": {"first": 0.1}}}}
    for name in "ab":
        place.daemon(name, config).start()
    sent = fleet(place).enqueue(jobs.fails_until, 2)
    place.wait_runs(sent.id, 4, 30)
    by_worker: dict[str, list[str]] = {}
    for line in place.journal("run"):
        by_worker.setdefault(line[2], []).append(line[4])
    assert sorted(by_worker.values()) == [["1", "2"], ["1", "2"]]
