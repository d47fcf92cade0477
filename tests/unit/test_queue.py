"""Queue: what enqueue sends, when it returns, what it refuses; options, many, batches."""

from __future__ import annotations

import json
import logging
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import psq
from psq import publish
from psq.message import decode
from psq.storages.base import FINISHED, TaskRecord
from tests.unit import sample_tasks
from tests.unit.memory import MemoryBroker, MemoryStorage
from tests.unit.sample_tasks import adder, echo


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def q(broker: MemoryBroker, storage: MemoryStorage) -> psq.Queue:
    return psq.Queue(psq.Client(broker=broker), "fast", storage=storage)


def sent(broker: MemoryBroker, index: int = -1) -> Any:
    return decode(broker.published[index].data)


# enqueue


def test_a_call_is_sent_as_a_message_of_the_queue(q: psq.Queue, broker: MemoryBroker) -> None:
    result = q.enqueue(adder, 5, b=6)
    (out,) = broker.published
    message = decode(out.data)
    assert (message.function, message.args, message.kwargs) == ("tests.unit.sample_tasks:adder", [5], {"b": 6})
    assert message.id == result.id == out.task_id
    assert message.queue == out.queue.name == "fast"
    assert message.reply == "memory://here"
    assert out.attributes == {"psq-v": "1", "psq-id": result.id, "psq-function": "tests.unit.sample_tasks:adder"}
    assert out.due_at is None
    assert broker.timeouts == [10.0]


def test_every_argument_belongs_to_the_function_whatever_its_name(q: psq.Queue, broker: MemoryBroker) -> None:
    names = ["self", "f", "args", "kwargs", "delay", "eta", "task_id", "queue", "retries", "timeout", "options", "$"]
    q.enqueue(echo, **dict.fromkeys(names, 1))
    assert sent(broker).kwargs == dict.fromkeys(names, 1)
    q.enqueue_in(5, echo, seconds=1, f=2)
    assert sent(broker).kwargs == {"seconds": 1, "f": 2}
    q.enqueue_at(5.0, echo, when=1, f=2)
    assert sent(broker).kwargs == {"when": 1, "f": 2}


@pytest.mark.parametrize("name", ["myapp.tasks:f", "myapp.tasks.f"])
def test_a_function_may_be_named(q: psq.Queue, broker: MemoryBroker, name: str) -> None:
    q.enqueue(name, 1)
    assert sent(broker).function == "myapp.tasks:f"


def test_what_a_worker_could_not_run_or_read_is_refused_before_anything_is_sent(
    q: psq.Queue, broker: MemoryBroker
) -> None:
    with pytest.raises(psq.FunctionRefused):
        q.enqueue(lambda: 1)
    with pytest.raises(psq.SerializationError, match=r"argument 2 of tests.unit.sample_tasks:adder is a"):
        q.enqueue(adder, 1, object())
    with pytest.raises(psq.MessageTooLarge, match=r"of 2\d,\d{3} bytes, and the broker takes 10,000") as caught:
        q.enqueue(adder, "x" * 20_000)
    assert caught.value.size > 20_000
    assert caught.value.limit == 10_000
    assert broker.published == []


def test_attributes_count_to_the_size(q: psq.Queue, broker: MemoryBroker) -> None:
    q.options(task_id="a").enqueue(adder, "")
    out = broker.published[0]
    size = len(out.data) + sum(len(key) + len(value) for key, value in out.attributes.items())
    q.options(task_id="b").enqueue(adder, "x" * (broker.max_message_bytes - size - 20))
    with pytest.raises(psq.MessageTooLarge):
        q.options(task_id="c").enqueue(adder, "x" * (broker.max_message_bytes - size + 20))


def test_it_returns_when_the_broker_has_it_and_not_before(q: psq.Queue, broker: MemoryBroker) -> None:
    broker.hold = True
    results: list[psq.TaskResult] = []
    thread = threading.Thread(target=lambda: results.append(q.enqueue(adder, 1)))
    thread.start()
    assert broker.arrived.wait(30)
    assert results == []
    broker.held[0](None, None)
    thread.join(30)
    assert len(results) == 1


@pytest.mark.parametrize(
    "error",
    [psq.BrokerUnavailable("away"), psq.BrokerRefused("no"), psq.MessageTooLarge("big", size=1, limit=2)],
)
def test_the_brokers_error_is_raised(q: psq.Queue, broker: MemoryBroker, error: Exception) -> None:
    broker.errors.append(error)
    with pytest.raises(type(error), match=str(error)) as caught:
        q.enqueue(adder, 1)
    assert caught.value is not error, "one request's error goes to many callers"
    assert vars(caught.value).items() >= vars(error).items()


def test_what_may_have_been_accepted_says_which_task(q: psq.Queue, broker: MemoryBroker) -> None:
    cause = OSError("cut")
    error = psq.PublishUnknown("no answer")
    error.__cause__ = cause
    broker.errors.append(error)
    with pytest.raises(psq.PublishUnknown) as caught:
        q.options(task_id="order-7").enqueue(adder, 1)
    assert caught.value.task_id == "order-7"
    assert caught.value.__cause__ is cause
    q.options(task_id="order-7").enqueue(adder, 1)
    assert sent(broker).id == "order-7"


def test_a_broker_that_never_calls_back_is_given_up(
    q: psq.Queue, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "GRACE", -9.0)  # so that a timeout of 10 s is over after 1 s
    broker.hold = True
    with pytest.raises(psq.PublishUnknown, match=r"no answer came in 10 s.*same task_id") as caught:
        q.options(task_id="a").enqueue(adder, 1)
    assert caught.value.task_id == "a"


def test_a_request_that_hangs_is_ticked_on(q: psq.Queue, broker: MemoryBroker) -> None:
    broker.hold = True
    ticked = threading.Event()

    def tick() -> None:
        ticked.set()
        broker.held[0](None, None)

    broker.tick = tick  # type: ignore[method-assign]
    q.enqueue(adder, 1)
    assert ticked.is_set()


def test_the_broker_may_refuse_a_name_and_is_asked_once(q: psq.Queue, broker: MemoryBroker) -> None:
    q.enqueue(adder, 1)
    q.options(delay=1).enqueue(adder, 1)
    assert broker.names == ["fast"]


def test_the_log_says_once_where_tasks_go(q: psq.Queue, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "psq")
    q.enqueue(adder, 1)
    q.enqueue(adder, 1)
    assert caplog.text.count("tasks go to memory://, results are read from memory://") == 1


def test_one_queue_serves_many_threads(q: psq.Queue, broker: MemoryBroker) -> None:
    threads = [threading.Thread(target=lambda: [q.enqueue(adder, 1) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({message.task_id for message in broker.published}) == 400


# options


def test_options_are_those_of_an_immutable_copy(q: psq.Queue, broker: MemoryBroker) -> None:
    later = q.options(delay=60, retries=2)
    both = later.options(time_limit=5, delay=None)
    q.enqueue(adder, 1)
    assert (sent(broker).due_at, sent(broker).retries) == (None, None)
    later.enqueue(adder, 1)
    assert sent(broker).due_at == pytest.approx(sent(broker).enqueued_at + 60)
    assert sent(broker).retries == 2
    assert broker.published[-1].due_at == sent(broker).due_at
    both.enqueue(adder, 1)
    assert (sent(broker).due_at, sent(broker).retries, sent(broker).time_limit) == (None, 2, 5)
    assert later.is_same(q)
    assert later.name == "fast"


def test_all_options_travel(q: psq.Queue, broker: MemoryBroker) -> None:
    when = datetime(2030, 1, 1, tzinfo=UTC)
    q.options(
        eta=when,
        task_id="a",
        retries=0,
        retry={"first": 5, "on": [ConnectionError]},
        time_limit=9,
        soft_time_limit=8,
        publish_timeout=3,
    ).enqueue(adder, 1)
    message = sent(broker)
    assert message.due_at == when.timestamp()
    assert (message.id, message.retries, message.time_limit, message.soft_time_limit) == ("a", 0, 9, 8)
    assert message.retry == {"first": 5, "on": ["builtins:ConnectionError"]}
    assert broker.timeouts == [3]


def test_an_unknown_option_is_an_error(q: psq.Queue) -> None:
    with pytest.raises(TypeError, match="priority"):
        q.options(priority=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("seconds", [60, 60.0, timedelta(minutes=1)])
def test_enqueue_in(q: psq.Queue, broker: MemoryBroker, seconds: Any) -> None:
    q.enqueue_in(seconds, adder, 1, b=2)
    assert sent(broker).due_at == pytest.approx(sent(broker).enqueued_at + 60)
    assert (sent(broker).args, sent(broker).kwargs) == ([1], {"b": 2})


def test_enqueue_at_takes_an_aware_datetime_and_no_naive_one(q: psq.Queue, broker: MemoryBroker) -> None:
    when = datetime(2030, 1, 1, tzinfo=UTC)
    q.options(delay=5, retries=1).enqueue_at(when, adder, 1)
    assert (sent(broker).due_at, sent(broker).retries) == (when.timestamp(), 1)
    with pytest.raises(psq.ConfigError, match="has no time zone"):
        q.enqueue_at(datetime(2030, 1, 1), adder, 1)  # noqa: DTZ001
    assert len(broker.published) == 1


def test_the_decorators_publish_timeout_yields_to_the_options(q: psq.Queue, broker: MemoryBroker) -> None:
    q.enqueue(sample_tasks.decorated, 1, 2)
    q.options(publish_timeout=7).enqueue(sample_tasks.decorated, 1, 2)
    assert broker.timeouts == [2.5, 7]
    assert sent(broker).retries is None, "the worker looks at the decorator itself"


# many


def test_many_are_sent_in_order_and_their_results_returned(q: psq.Queue, broker: MemoryBroker) -> None:
    results = q.enqueue_many([(adder, (1, 2)), (adder, [3], {"b": 4}), (sample_tasks.plain,), ("a.b:c", (), {})])
    assert [result.id for result in results] == [message.task_id for message in broker.published]
    messages = [decode(message.data) for message in broker.published]
    assert [message.args for message in messages] == [[1, 2], [3], [], []]
    assert messages[1].kwargs == {"b": 4}


def test_none_are_fine(q: psq.Queue, broker: MemoryBroker) -> None:
    assert q.enqueue_many([]) == []
    with q.batch() as results:
        pass
    assert list(results) == []
    assert broker.published == []


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ((lambda: 1,), psq.FunctionRefused),
        ((adder, (object(),)), psq.SerializationError),
        ((adder, ("x" * 20_000,)), psq.MessageTooLarge),
        (adder, psq.ConfigError),
        ((), psq.ConfigError),
        ("a.b:c", psq.ConfigError),
        ((adder, 5), psq.ConfigError),
        ((adder, "ab"), psq.ConfigError),
        ((adder, (), ["b"]), psq.ConfigError),
        ((adder, (), {}, 1), psq.ConfigError),
    ],
)
def test_where_one_is_not_valid_none_is_sent_and_its_index_is_told(
    q: psq.Queue, broker: MemoryBroker, call: Any, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        q.enqueue_many([(adder, (1,)), call])
    assert any("item 1" in note for note in caught.value.__notes__)
    assert broker.published == []


def test_those_that_were_not_accepted_are_listed(q: psq.Queue, broker: MemoryBroker) -> None:
    broker.errors.extend([None, psq.BrokerUnavailable("away"), None, psq.PublishUnknown("who knows")])
    with pytest.raises(psq.EnqueueFailed, match=r"2 of 5 tasks were not accepted.*away") as caught:
        q.enqueue_many([(adder, (number,)) for number in range(5)])
    failed = caught.value
    assert [(index, type(error)) for index, _, error in failed.errors] == [
        (1, psq.BrokerUnavailable),
        (3, psq.PublishUnknown),
    ]
    assert [result is None for result in failed.results] == [False, True, False, True, False]
    assert [result.id for result in failed.results if result] == [message.task_id for message in broker.published]
    unknown = failed.errors[1][2]
    assert isinstance(unknown, psq.PublishUnknown)
    assert unknown.task_id == failed.errors[1][1]


def test_many_that_are_never_answered_are_listed_as_unknown(
    q: psq.Queue, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "GRACE", -9.0)
    broker.hold = True
    with pytest.raises(psq.EnqueueFailed) as caught:
        q.enqueue_many([(adder, (1,)), (adder, (2,))])
    assert [type(error) for _, _, error in caught.value.errors] == [psq.PublishUnknown] * 2


def test_very_many_are_handed_over_in_parts(
    q: psq.Queue, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "WINDOW", 3)
    broker.errors.extend([None] * 4 + [psq.BrokerRefused("no")])
    with pytest.raises(psq.EnqueueFailed) as caught:
        q.enqueue_many([(adder, (number,)) for number in range(8)])
    assert [index for index, _, _ in caught.value.errors] == [4]
    assert len(broker.published) == 7
    monkeypatch.setattr(publish, "WINDOW_BYTES", 1)
    assert len(q.enqueue_many([(adder, (number,)) for number in range(3)])) == 3


def test_a_task_id_is_for_one_task(q: psq.Queue, broker: MemoryBroker) -> None:
    with pytest.raises(psq.ConfigError, match="names one task"):
        q.options(task_id="a").enqueue_many([(adder, (1,)), (adder, (2,))])
    assert [result.id for result in q.options(task_id="a").enqueue_many([(adder, (1,))])] == ["a"]


# batch


def test_a_batch_sends_at_its_end_what_the_block_enqueued(q: psq.Queue, broker: MemoryBroker) -> None:
    with q.batch() as results:
        first = q.enqueue(adder, 1)
        q.options(delay=60).enqueue(adder, 2)
        q.enqueue_in(5, adder, 3)
        assert broker.published == []
        assert len(results) == 3
        with pytest.raises(psq.PsqError, match="still in its batch"):
            first.result()
        assert "open" in repr(results)
    assert [result.id for result in results] == [message.task_id for message in broker.published]
    assert results[0] is first
    assert results[1:] == list(results)[1:]
    assert sent(broker, 1).due_at is not None
    q.enqueue(adder, 4)
    assert len(broker.published) == 4
    assert len(results) == 3


def test_a_block_that_raises_sends_nothing(q: psq.Queue, broker: MemoryBroker) -> None:
    with pytest.raises(KeyError), q.batch() as results:
        q.enqueue(adder, 1)
        raise KeyError
    assert broker.published == []
    assert list(results) == []
    q.enqueue(adder, 1)
    assert len(broker.published) == 1


def test_who_asks_for_a_result_of_a_block_that_raised_is_not_left_waiting(q: psq.Queue) -> None:
    with pytest.raises(KeyError), q.batch():
        result = q.enqueue(adder, 1)
        raise KeyError
    for ask in (result.result, lambda: result.status):
        with pytest.raises(psq.PsqError, match="was never sent"):
            ask()


def test_a_batch_says_which_were_not_accepted(q: psq.Queue, broker: MemoryBroker) -> None:
    broker.errors.extend([psq.BrokerUnavailable("away")])
    with pytest.raises(psq.EnqueueFailed) as caught, q.batch():
        q.enqueue(adder, 1)
        q.enqueue(adder, 2)
    assert [index for index, _, _ in caught.value.errors] == [0]


def test_other_queues_threads_and_batches_are_not_concerned(
    q: psq.Queue, broker: MemoryBroker, storage: MemoryStorage
) -> None:
    other = psq.Queue(q.client, "other", storage=storage)
    with q.batch() as outer:
        other.enqueue(adder, 1)
        thread = threading.Thread(target=lambda: q.enqueue(adder, 2))
        thread.start()
        thread.join()
        assert [message.queue.name for message in broker.published] == ["other", "fast"]
        with q.batch() as inner:
            q.enqueue(adder, 3)
        assert len(broker.published) == 3
        with other.batch():
            q.enqueue(adder, 4)
    assert (len(inner), len(outer)) == (1, 1)
    assert len(broker.published) == 4


def test_a_batch_is_used_once(q: psq.Queue) -> None:
    batch = q.batch()
    with batch:
        pass
    with pytest.raises(psq.PsqError, match="used once"), batch:
        pass


# results


def test_the_result_is_read_from_the_queues_storage(q: psq.Queue, storage: MemoryStorage) -> None:
    result = q.enqueue(adder, 5, 6)
    assert result.status == "unknown"
    assert result.get_task() is None
    storage.records[result.id] = TaskRecord(result.id, FINISHED, result=b'{"$":"tuple","v":[11]}')
    assert result.status == FINISHED
    assert result.result() == (11,)
    reads = storage.reads
    assert result.result(timeout=0) == (11,)
    assert storage.reads == reads, "a result that is known is not read again"
    again = psq.TaskResult(result.id, q)
    assert again == result
    assert hash(again) == hash(result)
    assert again.task_id == result.id
    assert again.result() == (11,)


def test_timeout_0_looks_once(q: psq.Queue, storage: MemoryStorage) -> None:
    result = q.enqueue(adder, 5, 6)
    with pytest.raises(psq.ResultTimeout, match="has no result yet") as caught:
        result.result(timeout=0)
    assert isinstance(caught.value, TimeoutError)
    assert storage.reads == 1


def test_a_result_that_does_not_come_is_a_timeout_with_the_reason(q: psq.Queue, storage: MemoryStorage) -> None:
    result = q.enqueue(adder, 5, 6)
    with pytest.raises(psq.ResultTimeout, match=r"no result after 0.01 s"):
        result.result(timeout=0.01)
    storage.error = psq.StorageUnavailable("gone")
    with pytest.raises(psq.ResultTimeout, match="can't be read: gone"):
        result.result(timeout=1)  # enough for one look


def test_a_failed_task_raises_and_is_read_again(q: psq.Queue, storage: MemoryStorage) -> None:
    result = q.enqueue(adder, 5, 6)
    error = {"type": "builtins:ValueError", "message": "no", "traceback": ""}
    storage.records[result.id] = TaskRecord(result.id, "failed", error=error)
    with pytest.raises(ValueError, match="no"):
        result.result()
    storage.records[result.id] = TaskRecord(result.id, FINISHED, run=2, result=b"1")
    assert result.result() == 1, "it was requeued"
    storage.records[result.id] = TaskRecord(result.id, "cancelled")
    with pytest.raises(psq.TaskCancelled):
        psq.TaskResult(result.id, q).result()


def test_without_a_storage_there_is_nothing_to_wait_for_and_it_says_so_at_once(broker: MemoryBroker) -> None:
    q = psq.Queue(psq.Client(broker=broker))
    result = q.enqueue(adder, 1)
    assert json.loads(broker.published[0].data).get("reply") is None
    for ask in (result.result, lambda: result.status, result.get_task):
        with pytest.raises(psq.NoStorage, match=r"'default' keeps no results.*storage="):
            ask()


def test_a_result_needs_an_id_and_a_queue(q: psq.Queue) -> None:
    with pytest.raises(psq.ConfigError, match="is no task id"):
        psq.TaskResult("a/b", q)
    with pytest.raises(RuntimeError, match="only while a task runs"):
        psq.TaskResult("a")


def test_tasks_of_a_storage_are_shown_as_psq_0_8_did(q: psq.Queue, storage: MemoryStorage) -> None:
    storage.records["a"] = TaskRecord("a", FINISHED, function="m:f", attempt=3, result=b"[1]", queue="fast")
    storage.records["b"] = TaskRecord("b", "failed", error={"type": "builtins:KeyError", "message": "k"})
    storage.records["c"] = TaskRecord("c", "started")
    task = storage.get_task("a")
    assert task is not None
    assert isinstance(task, psq.Task)
    assert (task.id, task.status, task.result, task.f, task.retries) == ("a", "finished", [1], "m:f", 2)
    assert task.queue == "fast"
    assert task.summary() == "a: m:f -> [1] (finished)"
    assert "a: m:f" in repr(task)
    failed, started = storage.get_task("b"), storage.get_task("c")
    assert failed is not None
    assert isinstance(failed.result, KeyError)
    assert started is not None
    assert started.result is None
    assert [task.id for task in storage.list_tasks()] == ["a", "b", "c"]
    storage.delete_task("a")
    assert storage.get_task("a") is None


# names


@pytest.mark.parametrize("name", ["default", "a", "0", "Fast_2.x~y+z%41", "x" * 200])
def test_names_that_are_taken(name: str) -> None:
    assert psq.Queue(name=name, asynchronous=False).name == name


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "a b", "a/b", "a:b", "é", "x" * 201, "a-dead", "a-shared", 5, None, "a\n"]
)
def test_names_that_are_refused(name: Any) -> None:
    with pytest.raises(psq.ConfigError, match="is no queue's name"):
        psq.Queue(name=name, asynchronous=False)


def test_a_queue_of_another_name_keeps_client_storage_and_contexts(q: psq.Queue, broker: MemoryBroker) -> None:
    slow = q.options(delay=5).named("slow")
    slow.enqueue(adder, 1)
    assert broker.published[0].queue.name == sent(broker).queue == "slow"
    assert sent(broker).due_at is None
    assert slow.storage is q.storage
    assert not slow.is_same(q)


def test_a_broadcast_queue_says_so_to_the_broker(broker: MemoryBroker) -> None:
    q = psq.BroadcastQueue(psq.Client(broker=broker))
    assert q.name == "broadcast"
    q.enqueue(adder, 1)
    assert broker.published[0].queue.broadcast
    assert q.broadcast
    assert isinstance(q.options(delay=1), psq.BroadcastQueue)
    assert q.named("other").spec.broadcast
    assert repr(q) == "<psq.BroadcastQueue 'broadcast'>"
