"""`@task`: what it leaves of the function, and where `delay` sends it."""

from __future__ import annotations

import inspect
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import psq
import psq.connect
from psq.context import TaskContext, running
from psq.functions import OPTIONS_ATTRIBUTE
from psq.message import decode
from psq.retry import RetryPolicy
from tests.unit import sample_tasks
from tests.unit.memory import MemoryBroker


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def q(broker: MemoryBroker) -> psq.Queue:
    return psq.Queue(psq.Client(broker=broker), "own")


def options_of(function: Any) -> Any:
    return getattr(function, OPTIONS_ATTRIBUTE)


def decorate(queue: Any, **options: Any) -> Any:
    """`sample_tasks.plain` as if it had been decorated so."""

    def plain(a: int) -> int:
        return a

    plain.__module__, plain.__qualname__ = "tests.unit.sample_tasks", "plain"
    return psq.task(queue=queue, **options)(plain)


def sent(broker: MemoryBroker) -> tuple[str, Any]:
    out = broker.published[-1]
    return out.queue.name, decode(out.data)


def test_the_function_stays_what_it_is() -> None:
    assert sample_tasks.decorated(5, 6) == 11
    assert inspect.isfunction(sample_tasks.decorated)
    assert inspect.signature(sample_tasks.decorated) == inspect.signature(lambda a, b: None).replace(
        parameters=inspect.signature(sample_tasks.decorated).parameters.values(), return_annotation="int"
    )
    assert pickle.loads(pickle.dumps(sample_tasks.decorated)) is sample_tasks.decorated
    assert options_of(sample_tasks.decorated).retries == 3


def test_delay_enqueues_on_the_tasks_queue(q: psq.Queue, broker: MemoryBroker) -> None:
    result = decorate(q).delay(5)
    name, message = sent(broker)
    assert (name, message.function, message.args, message.id) == (
        "own",
        "tests.unit.sample_tasks:plain",
        [5],
        result.id,
    )


def test_arguments_named_like_options_are_the_functions(q: psq.Queue, broker: MemoryBroker) -> None:
    decorate(q).delay(when=1, queue=2, delay=3, self=4)
    assert sent(broker)[1].kwargs == {"when": 1, "queue": 2, "delay": 3, "self": 4}
    decorate(q).defer(1, when=1, queue=2, self=4)
    assert sent(broker)[1].kwargs == {"when": 1, "queue": 2, "self": 4}


@pytest.mark.parametrize("when", [60, 60.0, timedelta(minutes=1)])
def test_defer_takes_seconds(q: psq.Queue, broker: MemoryBroker, when: Any) -> None:
    decorate(q).defer(when, 5)
    _, message = sent(broker)
    assert message.due_at == pytest.approx(message.enqueued_at + 60)
    assert message.args == [5]


def test_defer_takes_an_aware_datetime(q: psq.Queue, broker: MemoryBroker) -> None:
    when = datetime(2030, 1, 1, tzinfo=UTC)
    decorate(q).options(retries=1).defer(when, 5)
    assert (sent(broker)[1].due_at, sent(broker)[1].retries) == (when.timestamp(), 1)
    with pytest.raises(psq.ConfigError, match="has no time zone"):
        decorate(q).defer(datetime(2030, 1, 1), 5)  # noqa: DTZ001


def test_options_override_for_one_call_and_change_nothing(q: psq.Queue, broker: MemoryBroker) -> None:
    task = decorate(q, retries=1)
    other = task.options(retries=5, task_id="a")
    other.options(time_limit=3).delay(1)
    _, message = sent(broker)
    assert (message.retries, message.id, message.time_limit) == (5, "a", 3)
    task.delay(1)
    assert sent(broker)[1].retries is None
    assert "Options(" in repr(other)


def test_options_of_the_tasks_queue_stay_where_the_call_says_nothing_else(q: psq.Queue, broker: MemoryBroker) -> None:
    function = decorate(q.options(retries=5, time_limit=60, delay=30))
    function.options(time_limit=9).delay(1)
    _, message = sent(broker)
    assert (message.retries, message.time_limit) == (5, 9)
    assert message.due_at == pytest.approx(message.enqueued_at + 30)
    function.defer(datetime(2200, 1, 1, tzinfo=UTC), 1)
    _, message = sent(broker)
    assert (message.retries, message.time_limit) == (5, 60)
    assert message.due_at == datetime(2200, 1, 1, tzinfo=UTC).timestamp()


def test_another_queue_by_name_is_beside_the_tasks_own(q: psq.Queue, broker: MemoryBroker) -> None:
    decorate(q).options(queue="slow").delay(1)
    assert sent(broker)[0] == "slow"
    decorate(lambda: q).options(queue="slow").delay(1)
    assert sent(broker)[0] == "slow"
    other = psq.Queue(q.client, "other")
    decorate(q).options(queue=other, retries=1).delay(1)
    assert sent(broker)[0] == "other"
    decorate(q).options(queue="slow").options(retries=1).delay(1)
    assert sent(broker)[0] == "slow"


def test_a_callable_is_asked_at_the_first_delay_and_once(q: psq.Queue, broker: MemoryBroker) -> None:
    asked: list[int] = []

    def give() -> psq.Queue:
        asked.append(1)
        return q

    task = decorate(give)
    assert asked == []
    task.delay(1)
    task.delay(2)
    assert asked == [1]
    assert len(broker.published) == 2


@pytest.mark.parametrize("queue", [lambda: None, lambda: "name", 5, psq.Client(project="p")])
def test_what_gives_no_queue_is_an_error(queue: Any) -> None:
    with pytest.raises(psq.ConfigError, match="takes a Queue, a callable that gives one, or a name"):
        decorate(queue).delay(1)


@pytest.mark.parametrize(("queue", "name"), [("named", "named"), (None, "default")])
def test_a_name_is_resolved_at_the_first_delay_through_the_environment(
    queue: Any, name: str, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = decorate(queue)
    monkeypatch.setattr(psq.connect, "default_client", lambda: psq.Client(broker=broker))
    task.delay(1)
    assert sent(broker)[0] == name
    task.options(queue="slow").delay(1)
    assert sent(broker)[0] == "slow"


def test_in_a_task_a_name_is_one_of_the_broker_that_brought_it(q: psq.Queue, broker: MemoryBroker) -> None:
    from contextvars import Context

    def body() -> None:
        running(TaskContext("a", "m:f", "own"), q)
        decorate("named").delay(1)

    Context().run(body)
    assert sent(broker)[0] == "named"


def test_what_the_decorator_refuses() -> None:
    with pytest.raises(psq.FunctionRefused, match="@task is for functions made with def, not for a type"):
        psq.task(int)
    with pytest.raises(psq.FunctionRefused, match="_lru_cache_wrapper"):
        psq.task(retries=1)(sample_tasks.cached)
    with pytest.raises(psq.ConfigError, match="retries must be"):
        psq.task(retries=-1)
    with pytest.raises(psq.ConfigError, match="time_limit"):
        psq.task(time_limit=0)
    with pytest.raises(TypeError, match="priority"):
        psq.task(priority=1)  # type: ignore[call-overload]
    with pytest.raises(psq.ConfigError, match=r"@task\(…\) with options, or @task without"):
        psq.task(sample_tasks.adder, retries=1)  # type: ignore[call-overload]


def test_a_nested_function_may_be_decorated_and_is_refused_at_delay(q: psq.Queue) -> None:
    @psq.task(queue=q)
    def nested(a: int) -> int:
        return a

    assert nested(5) == 5
    with pytest.raises(psq.FunctionRefused, match="is nested in a function"):
        nested.delay(5)


def test_a_policy_may_be_a_dict() -> None:
    assert options_of(decorate(None, retry={"first": 3})).retry == RetryPolicy(first=3)


def test_the_modules_that_are_called_like_functions() -> None:
    import psq.task as module

    assert module is psq.task
    assert module.Retry is psq.Retry
    from psq import connect, task

    assert callable(task)
    assert connect("pubsub://p").url == "pubsub://p"
