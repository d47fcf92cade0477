"""``asynchronous=False`` and `psq.testing`: tasks run here, as a worker would run them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import psq
from psq.inline import MAX_ATTEMPTS
from psq.testing import HeldQueue, eager_queue, psq_eager, psq_held  # noqa: F401  (fixtures)
from tests.unit import sample_tasks
from tests.unit.memory import MemoryBroker, MemoryStorage


@pytest.fixture
def q() -> psq.Queue:
    return psq.Queue(asynchronous=False)


def test_it_runs_when_it_is_enqueued_and_needs_no_broker(q: psq.Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSQ_BROKER", "nonsense")
    result = q.enqueue(sample_tasks.adder, 5, 6)
    assert (result.result(), result.status) == (11, "finished")
    assert result.result(timeout=0) == 11
    task = result.get_task()
    assert task is not None
    assert task.f == "tests.unit.sample_tasks:adder"


def test_a_broker_that_is_given_is_not_touched() -> None:
    broker = MemoryBroker()
    q = psq.Queue(psq.Client(broker=broker), asynchronous=False)
    assert q.enqueue(sample_tasks.adder, 5, 6).result() == 11
    assert broker.published == []


def test_arguments_and_results_go_through_the_wire_format(q: psq.Queue) -> None:
    given = [1, (2, b"3")]
    back = q.enqueue(sample_tasks.returns, given).result()
    assert back == given
    assert back is not given
    point = q.enqueue(sample_tasks.returns, sample_tasks.Point(1)).result()
    assert point == sample_tasks.Point(1)
    with pytest.raises(psq.SerializationError):
        q.enqueue(sample_tasks.returns, object())


def test_a_result_that_cannot_be_sent_fails_the_task(q: psq.Queue) -> None:
    result = q.enqueue("tests.unit.sample_tasks:unsendable")
    with pytest.raises(psq.SerializationError, match=r"the result of tests\.unit\.sample_tasks:unsendable is a"):
        result.result()
    assert result.status == "failed"


def test_the_task_sees_itself_and_its_queue(q: psq.Queue) -> None:
    result = q.named("fast").options(task_id="abc").enqueue(sample_tasks.look)
    assert result.result() == {"id": "abc", "attempt": 1, "queue": "fast", "retries": 0}
    assert not psq.current_task


def test_a_task_may_enqueue(q: psq.Queue) -> None:
    assert len(q.enqueue(sample_tasks.enqueues, 5).result()) == 32


def test_an_error_is_in_the_result(q: psq.Queue) -> None:
    result = q.enqueue(sample_tasks.fails, "why")
    assert result.status == "failed"
    with pytest.raises(ValueError, match="why") as caught:
        result.result()
    assert isinstance(caught.value, psq.TaskFailed)
    assert "in fails" in caught.value.traceback
    with pytest.raises(psq.TaskFailed, match="SystemExit: 3"):
        q.enqueue(sample_tasks.exits).result()


def test_what_a_worker_would_refuse_is_refused_here(q: psq.Queue) -> None:
    with pytest.raises(psq.FunctionRefused):
        q.enqueue("tests.unit.sample_tasks:call")
    with pytest.raises(psq.PsqError, match="has no nobody here"):
        q.enqueue("tests.unit.sample_tasks:nobody")


def test_retries_are_made_without_their_pauses(q: psq.Queue) -> None:
    assert q.enqueue(sample_tasks.flaky, 3).result() == 3
    with pytest.raises(ConnectionError):
        q.enqueue(sample_tasks.flaky, 4).result()
    assert q.options(retries=5).enqueue(sample_tasks.flaky, 6).result() == 6
    with pytest.raises(ConnectionError):
        q.options(retry={"not_on": ["OSError"]}).enqueue(sample_tasks.flaky, 2).result()


def test_retry_has_no_limit_unless_retries_are_set(q: psq.Queue) -> None:
    assert q.enqueue(sample_tasks.again, 20).result() == 20
    with pytest.raises(psq.TaskFailed):
        q.options(retries=3).enqueue(sample_tasks.again, 20).result()
    result = q.enqueue(sample_tasks.always_again)
    task = result.get_task()
    assert task is not None
    assert task.attempt == MAX_ATTEMPTS


def test_each_attempt_gets_its_arguments_as_they_were_sent(q: psq.Queue) -> None:
    assert q.enqueue(sample_tasks.spoils, []).result() == 1


def test_contexts_are_entered_and_left_around_each_attempt() -> None:
    lines: list[str] = []

    @contextmanager
    def context() -> Iterator[None]:
        lines.append("enter")
        try:
            yield
        finally:
            lines.append("leave")

    q = psq.Queue(extra_context=context, asynchronous=False)
    q.enqueue(sample_tasks.again, 2)
    q.enqueue(sample_tasks.fails)
    assert lines == ["enter", "leave"] * 3


def test_the_record_goes_to_the_storage_where_one_is_given() -> None:
    storage = MemoryStorage()
    q = psq.Queue(storage=storage, asynchronous=False)
    result = q.enqueue(sample_tasks.adder, 1, 2)
    assert storage.records[result.id].result == b"3"
    storage.store_on_status = ()
    other = q.enqueue(sample_tasks.adder, 1, 2)
    assert other.id not in storage.records
    assert other.result() == 3


def test_many_and_batches_run_too(q: psq.Queue) -> None:
    assert [
        result.result() for result in q.enqueue_many([(sample_tasks.adder, (1, 2)), (sample_tasks.adder, (3,))])
    ] == [
        3,
        3,
    ]
    with q.batch() as results:
        q.enqueue(sample_tasks.adder, 5)
    assert [result.result() for result in results] == [5]


def test_a_delay_is_not_waited_for(q: psq.Queue) -> None:
    assert q.enqueue_in(3600, sample_tasks.adder, 1).result() == 1


# psq.testing


def test_an_eager_queue() -> None:
    q = eager_queue("fast")
    assert q.enqueue(sample_tasks.look).result()["queue"] == "fast"


def test_a_held_queue_holds_until_it_is_drained() -> None:
    q = HeldQueue("fast")
    result = q.enqueue_in(60, sample_tasks.adder, 5, b=(6,))
    q.enqueue(sample_tasks.enqueues, 5)
    (held, _) = q.held
    assert held.function == "tests.unit.sample_tasks:adder"
    assert (held.args, held.kwargs) == ((5,), {"b": (6,)})
    assert held.message.due_at is not None
    assert held.result is result
    with pytest.raises(psq.NoStorage):
        result.result(timeout=0)
    q.held[0].message.kwargs = {"b": 6}
    assert q.drain() == 3, "with what the second enqueued"
    assert result.result() == 11
    assert q.held == []
    assert q.drain() == 0


def test_tasks_that_enqueue_each_other_for_ever_are_an_error() -> None:
    q = HeldQueue()
    q.enqueue("tests.unit.sample_tasks:enqueues_itself")
    with pytest.raises(RuntimeError, match="50 tasks were run and 1 more are held"):
        q.drain(limit=50)


def test_the_fixtures(psq_eager: psq.Queue, psq_held: HeldQueue) -> None:  # noqa: F811
    assert psq_eager.enqueue(sample_tasks.adder, 1).result() == 1
    psq_held.enqueue(sample_tasks.adder, 1)
    assert len(psq_held.held) == 1
