"""The main job, through a real daemon, on each broker."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

import psq
from psq.brokers.base import Outgoing
from psq.concurrency import Waiter
from psq.message import Message, attributes, encode
from tests.acceptance.processes import wait_until
from tests.integration import jobs
from tests.integration.daemons import Site

QUEUES = {"queues": {"default": {"concurrency": 20}, "slow": {"concurrency": 2}}}


@pytest.fixture
def queue_of(place: Site) -> Callable[..., psq.Queue]:
    """Makes the sender's queues."""
    client = psq.connect(place.broker)

    def make(name: str = "default", **options: object) -> psq.Queue:
        return psq.Queue(client, name, **{"storage": place.storage, **options})

    return make


def test_an_enqueued_function_runs_and_its_result_comes_back(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    place.daemon("a", QUEUES).start()
    assert queue_of().enqueue(jobs.adder, 5, 6).result(timeout=20) == 11


def test_tasks_enqueued_before_the_first_daemon_run_when_it_comes(
    place: Site, queue_of: Callable[..., psq.Queue]
) -> None:
    results = [queue_of().enqueue(jobs.adder, n, 1) for n in range(5)]
    place.daemon("a", QUEUES).start()
    assert [r.result(timeout=20) for r in results] == [1, 2, 3, 4, 5]


def test_a_task_that_raises_fails_at_once_and_its_error_comes_back(
    place: Site, queue_of: Callable[..., psq.Queue]
) -> None:
    place.daemon("a", QUEUES).start()
    result = queue_of().enqueue(jobs.fails, "no such thing")
    with pytest.raises(ValueError, match="no such thing") as caught:
        result.result(timeout=20)
    assert isinstance(caught.value, psq.TaskFailed)
    assert "in fails" in caught.value.traceback
    assert result.status == "failed"
    assert len(place.journal("run")) == 1


def test_retries_run_again_with_the_attempt_visible(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    place.daemon("a", {"queues": {"default": {"retry": {"first": 0.1}}}}).start()
    result = queue_of().options(retries=3).enqueue(jobs.fails_until, 3)
    assert result.result(timeout=30) == 3
    assert [line[4] for line in place.journal("run")] == ["1", "2", "3"]


def test_raise_retry_has_no_limit_and_is_never_early(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    place.daemon("a", QUEUES).start()
    result = queue_of().enqueue(jobs.asks_again, 4, 0.3)
    assert result.result(timeout=60) == 4
    starts = [float(line[3]) for line in place.journal("run")]
    assert all(later - earlier >= 0.3 for earlier, later in itertools.pairwise(starts))


def test_out_of_retries_is_a_dead_letter_that_can_be_requeued(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    place.daemon("a", {"queues": {"default": {"retry": {"first": 0.05}}}}).start()
    q = queue_of()
    result = q.options(retries=1).enqueue(jobs.fails, "twice")
    with pytest.raises(ValueError, match="twice"):
        result.result(timeout=30)
    assert q.storage is not None
    [letter] = q.storage.get_dead(result.id)
    assert letter.reason == "out of retries"
    assert letter.attempt == 2
    assert "ValueError: twice" in letter.error
    assert "in fails" in letter.traceback


def test_a_delayed_task_is_never_early(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    place.daemon("a", QUEUES).start()
    sent = time.monotonic()
    queue_of().enqueue_in(2.5, jobs.noted).result(timeout=30)
    [line] = place.journal("run")
    assert float(line[3]) - sent >= 2.5


def test_a_delayed_task_survives_a_restart_of_the_daemon(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    first = place.daemon("a", QUEUES).start()
    sent = time.monotonic()
    result = queue_of().enqueue_in(4, jobs.noted)
    assert first.stop() == 0
    place.daemon("b", QUEUES).start()
    result.result(timeout=40)
    [line] = place.journal("run")
    assert float(line[3]) - sent >= 4


FORBIDDEN = [
    "os:system",
    "subprocess:call",
    "tests.integration.jobs:call",  # re-exported
    "tests.integration.jobs:os.system",
    "tests.integration.jobs:Traced",
    "tests.integration.jobs:adder.__globals__",
    "gevent.subprocess:call",
]


def send_raw(place: Site, name: str, task_id: str) -> psq.TaskResult:
    """Publish what no client of ours would: the daemon must not trust the publisher."""
    q = psq.Queue(psq.connect(place.broker), storage=place.storage)
    message = Message(task_id, name, ["true"], {}, "default", time.time())
    waiter = Waiter()
    out = Outgoing(q.spec, encode(message), attributes(message), None, task_id)
    q.client.broker.publish(out, lambda _, error: waiter.set(error))
    assert waiter.wait(20)
    assert waiter.value is None
    return psq.TaskResult(task_id, q)


def test_what_may_not_run_is_a_dead_letter_and_the_worker_goes_on(
    place: Site, queue_of: Callable[..., psq.Queue]
) -> None:
    place.daemon("a", QUEUES).start()
    q = queue_of()
    assert q.storage is not None
    bad = [send_raw(place, name, f"bad-{n}") for n, name in enumerate(FORBIDDEN)]
    for result in bad:
        with pytest.raises(psq.TaskFailed, match="not allowed"):
            result.result(timeout=20)
        [letter] = q.storage.get_dead(result.id)
        assert letter.reason == "not allowed"
    assert q.enqueue(jobs.adder, 1, 2).result(timeout=20) == 3


def test_a_function_that_is_not_known_yet_waits_and_then_is_a_dead_letter(
    place: Site, queue_of: Callable[..., psq.Queue]
) -> None:
    daemon = place.daemon("a", {**QUEUES, "unknown_function_grace": 3}).start()
    result = queue_of().enqueue("tests.integration.jobs:of_tomorrow")
    daemon.wait_line(r"task .* waits: .*of_tomorrow")
    with pytest.raises(psq.TaskFailed, match="not found"):
        result.result(timeout=40)


def test_a_task_that_exits_fails_and_the_worker_lives(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    daemon = place.daemon("a", QUEUES).start()
    worker = daemon.worker_pid()
    with pytest.raises(psq.TaskFailed, match="SystemExit"):
        queue_of().enqueue(jobs.exits).result(timeout=20)
    assert queue_of().enqueue(jobs.adder, 1, 2).result(timeout=20) == 3
    assert daemon.worker_pid() == worker


def test_a_result_that_can_not_be_stored_fails_its_own_task_only(
    place: Site, queue_of: Callable[..., psq.Queue]
) -> None:
    place.daemon("a", QUEUES).start()
    q = queue_of()
    others = [q.enqueue(jobs.adder, n, n) for n in range(20)]
    bad = q.enqueue(jobs.unstorable)
    with pytest.raises(psq.TaskFailed, match="result of"):
        bad.result(timeout=20)
    assert [r.result(timeout=20) for r in others] == [2 * n for n in range(20)]


def test_a_task_enqueues_from_inside_and_sees_itself(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    place.daemon("a", QUEUES).start()
    q = queue_of()
    seen = q.options(task_id="my-id").enqueue(jobs.who).result(timeout=20)
    assert seen["id"] == "my-id"
    assert seen["queue"] == seen["current_queue"] == "default"
    assert seen["attempt"] == 1
    ids = q.enqueue(jobs.enqueues, "slow", 3).result(timeout=20)
    place.wait_journal("run", 3, 20)
    assert set(place.runs()) == set(ids)


def test_a_queue_of_a_tasks_module_is_the_daemons_own(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    place.daemon("a", QUEUES).start()
    assert queue_of().enqueue(jobs.enqueues_on_own_queue).result(timeout=30) == [True, 42]
    assert queue_of().enqueue(jobs.enqueues_in_a_subprocess).result(timeout=60) == "3"


def test_early_ack_runs_at_most_once(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    daemon = place.daemon("a", {"queues": {"default": {"ack": "early"}}, "shutdown_timeout": 3}).start()
    result = queue_of().enqueue(jobs.nap, 60)
    place.wait_journal("start", 1, 20)
    assert daemon.stop() == 0
    with pytest.raises(psq.TaskFailed, match="interrupted"):
        result.result(timeout=10)


def test_a_drain_gives_back_what_does_not_end_in_time(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    first = place.daemon("a", {**QUEUES, "shutdown_timeout": 4}).start()
    q = queue_of()
    short, long = q.enqueue(jobs.nap, 1), q.enqueue(jobs.nap, 8)
    place.wait_journal("start", 2, 20)
    began = time.monotonic()
    assert first.stop() == 0
    assert time.monotonic() - began < 4 + 5
    assert short.result(timeout=1) == "slept"
    assert long.status == "unknown"
    place.nothing_left()
    place.daemon("b", QUEUES).start()
    assert long.result(timeout=40) == "slept"
    assert place.runs("start")[long.id] == 2


def test_a_second_term_ends_at_once_and_the_tasks_run_again(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    first = place.daemon("a", QUEUES).start()
    result = queue_of().enqueue(jobs.nap, 3)
    place.wait_journal("start", 1, 20)
    first.signal(15)
    first.wait_line("stopping")
    assert first.stop(10) == 1
    place.nothing_left()
    place.daemon("b", QUEUES).start()
    assert result.result(timeout=40) == "slept"


def test_pause_and_continue(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    import signal

    daemon = place.daemon("a", QUEUES).start()
    q = queue_of()
    assert q.enqueue(jobs.adder, 1, 1).result(timeout=20) == 2
    daemon.signal(signal.SIGTSTP)
    daemon.wait_line("paused")
    held = q.enqueue(jobs.noted)
    with pytest.raises(psq.ResultTimeout):
        held.result(timeout=2)
    daemon.signal(signal.SIGCONT)
    assert held.result(timeout=30) == 0


def test_subprocesses_of_tasks_live_beside_busy_calls(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    place.daemon("a", {"queues": {"default": {"concurrency": 10}, "busy": {"concurrency": 50}}}).start()
    busy = queue_of("busy", storage=None)
    children = queue_of().enqueue_many([(jobs.child, (), {}) for _ in range(50)])
    for _ in range(10):
        busy.enqueue_many([(jobs.noted, (n,), {}) for n in range(50)])
    assert [r.result(timeout=120) for r in children] == [0] * 50


def test_a_time_limit_fails_the_task_and_pops_its_contexts(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    place.daemon("a", QUEUES).start()
    with pytest.raises(psq.TaskFailed, match=r"time_limit of 0\.5 s"):
        queue_of().options(time_limit=0.5).enqueue(jobs.nap, 30).result(timeout=20)


def test_the_same_task_id_enqueued_twice_ends_as_one_result(place: Site, queue_of: Callable[..., psq.Queue]) -> None:
    place.daemon("a", QUEUES).start()
    q = queue_of().options(task_id="twice")
    first, second = q.enqueue(jobs.adder, 1, 2), q.enqueue(jobs.adder, 1, 2)
    assert first.id == second.id
    assert first.result(timeout=20) == second.result(timeout=20) == 3


def test_sixty_queues_in_one_daemon_are_all_served(place: Site) -> None:
    names = [f"q{n}" for n in range(60)]
    daemon = place.daemon("a", {"queues": {name: {"concurrency": 2} for name in names}}).start()
    client = psq.connect(place.broker)
    results = {name: psq.Queue(client, name, storage=place.storage).enqueue(jobs.noted, name) for name in names}
    for result in results.values():
        assert result.result(timeout=30) == 1
    wait_until(lambda: len(place.journal("run")) == 60, 5, daemon.log)
