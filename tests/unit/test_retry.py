"""When a task that raised runs again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import psq
from psq.errors import ConfigError
from psq.options import TaskOptions, over
from psq.retry import RetryPolicy
from tests.unit.sample_tasks import NotFoundError


def middle() -> float:
    return 0.5


def pauses(policy: RetryPolicy, error: BaseException, attempts: int) -> list[float | None]:
    return [policy.decide(attempt, error, random=middle) for attempt in range(1, attempts + 1)]


def test_by_default_an_exception_fails_the_task_at_once() -> None:
    assert RetryPolicy().decide(1, ValueError()) is None


def test_pauses_grow_up_to_the_longest_and_end_with_the_retries() -> None:
    policy = RetryPolicy(retries=5, first=1, factor=3, max=10)
    assert pauses(policy, ValueError(), 6) == [1, 3, 9, 10, 10, None]


def test_none_means_no_limit_and_no_overflow() -> None:
    policy = RetryPolicy(retries=None, first=1, factor=10, max=60)
    assert policy.decide(100_000, ValueError(), random=middle) == 60


@given(st.floats(0, 1), st.integers(1, 50), st.floats(0, 1))
def test_jitter_keeps_to_its_part_of_the_pause(jitter: float, attempt: int, chance: float) -> None:
    policy = RetryPolicy(retries=None, first=2, factor=2, max=100, jitter=jitter)
    pause = policy.decide(attempt, ValueError(), random=lambda: chance)
    whole = min(100, 2 * 2 ** (attempt - 1))
    assert pause is not None
    assert whole * (1 - jitter) - 1e-9 <= pause <= whole * (1 + jitter) + 1e-9


@pytest.mark.parametrize(
    ("rule", "error", "retried"),
    [
        ({"on": (ConnectionError,)}, ConnectionResetError(), True),
        ({"on": (ConnectionError,)}, ValueError(), False),
        ({"on": ("ConnectionError",)}, ConnectionResetError(), True),
        ({"on": ("builtins:OSError",)}, ConnectionResetError(), True),
        ({"on": ("tests.unit.sample_tasks:NotFoundError",)}, NotFoundError("x", code=1), True),
        ({"on": ("tests.unit.sample_tasks.NotFoundError",)}, NotFoundError("x", code=1), True),
        ({"on": ("LookupError",)}, NotFoundError("x", code=1), True),
        ({"on": ("NotFoundError",)}, NotFoundError("x", code=1), False),
        ({"not_on": (LookupError,)}, KeyError(), False),
        ({"not_on": (LookupError,)}, ValueError(), True),
        ({"on": (OSError,), "not_on": ("TimeoutError",)}, TimeoutError(), False),
        ({"on": (OSError,), "not_on": ("TimeoutError",)}, ConnectionError(), True),
        ({"on": ValueError}, ValueError(), True),
        ({"on": "ValueError"}, ValueError(), True),
    ],
)
def test_rules_by_exception(rule: dict[str, Any], error: Exception, retried: bool) -> None:
    assert (RetryPolicy(retries=1, **rule).decide(1, error) is not None) is retried


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"retries": -1}, "retries must be a whole number"),
        ({"retries": True}, "retries must be a whole number"),
        ({"retries": 1.5}, "retries must be a whole number"),
        ({"first": -1}, r"retry\.first"),
        ({"first": "1"}, r"retry\.first"),
        ({"first": float("nan")}, r"retry\.first"),
        ({"factor": 0.5}, r"retry\.factor"),
        ({"max": float("inf")}, r"retry\.max"),
        ({"jitter": 1.1}, r"retry\.jitter"),
        ({"on": 5}, r"retry\.on"),
        ({"on": [""]}, r"retry\.on"),
        ({"not_on": [int]}, r"retry\.not_on"),
    ],
)
def test_a_wrong_value_is_named(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RetryPolicy(**keys)
    with pytest.raises(ConfigError, match=words):
        RetryPolicy().merged(**keys)


def test_an_unknown_key_is_named_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'frist'.*factor, first, jitter"):
        RetryPolicy.from_document({"frist": 1})


def test_a_document_holds_what_differs_and_comes_back() -> None:
    policy = RetryPolicy(retries=None, first=5, on=(ConnectionError, "a:B"))
    document = policy.to_document()
    assert document == {"retries": None, "first": 5, "on": ["builtins:ConnectionError", "a:B"]}
    back = RetryPolicy.from_document(document)
    assert back.decide(9, ConnectionResetError()) is not None
    assert back.to_document() == document
    assert RetryPolicy().to_document() == {}


def test_what_is_left_out_is_the_queues_own() -> None:
    queue = RetryPolicy(retries=7, max=20)
    task = TaskOptions(retry=RetryPolicy(first=3), retries=None)
    assert task.policy(queue) == RetryPolicy(retries=7, max=20, first=3)
    assert over(task.policy(queue), {"first": 4}, 2) == RetryPolicy(retries=2, max=20, first=4)
    assert over(queue, None, None) is queue


@pytest.mark.parametrize(
    ("arguments", "delay", "args"),
    [
        ((), None, ()),
        ((5,), 5, ()),
        ((1.5, "why"), 1.5, ("why",)),
        (("why",), None, ("why",)),
        ((None, "a"), None, ("a",)),
    ],
)
def test_retry_takes_a_delay_or_a_text(arguments: Any, delay: Any, args: Any) -> None:
    error = psq.Retry(*arguments)
    assert (error.delay, error.args) == (delay, args)


@pytest.mark.parametrize("delay", [-1, 99e9, float("nan"), float("inf"), True, [], object()])
def test_retry_refuses_a_delay_that_is_none(delay: Any) -> None:
    with pytest.raises(ConfigError, match="Retry's delay"):
        psq.Retry(delay)
