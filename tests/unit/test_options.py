"""Options of an enqueue: what is taken, what is refused, and when a task is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from psq.errors import ConfigError
from psq.message import decode, encode
from psq.options import MAX_DELAY, Options, TaskOptions, unix_time
from psq.publish import draft
from psq.retry import RetryPolicy


@pytest.mark.parametrize(
    ("options", "due"),
    [
        (Options(), None),
        (Options(delay=10), 110.0),
        (Options(delay=timedelta(minutes=1)), 160.0),
        (Options(delay=0), None),
        (Options(delay=-5), None),
        (Options(eta=datetime(1970, 1, 1, 0, 5, tzinfo=UTC)), 300.0),
        (Options(eta=datetime(1970, 1, 1, 1, 5, tzinfo=ZoneInfo("Europe/Berlin"))), 300.0),
        (Options(eta=50.5), 50.5),
    ],
)
def test_when_it_is_due(options: Options, due: float | None) -> None:
    assert options.due_at(100.0) == due


def test_a_naive_datetime_is_refused_with_what_to_write() -> None:
    with pytest.raises(ConfigError, match=r"has no time zone.*datetime.now"):
        Options(eta=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(ConfigError, match="has no time zone"):
        unix_time(datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"delay": 1, "eta": 5}, "not both"),
        ({"delay": "1"}, "a delay is seconds"),
        ({"delay": True}, "a delay is seconds"),
        ({"delay": float("nan")}, "a delay is seconds"),
        ({"eta": "tomorrow"}, "a time is an aware datetime"),
        ({"eta": -1}, "a time is an aware datetime"),
        ({"eta": float("inf")}, "a time is an aware datetime"),
        ({"eta": datetime(1960, 1, 1, tzinfo=UTC)}, r"between 1970 and 5138, not .*1960"),
        ({"eta": datetime(9999, 1, 1, tzinfo=UTC)}, r"between 1970 and 5138, not .*9999"),
        ({"delay": timedelta(days=9_999_999)}, "a delay is seconds"),
        ({"delay": 99e9}, "a delay is seconds"),
        ({"task_id": "a b"}, "is no task id"),
        ({"retries": -1}, r"retries must be.*RetryPolicy\(retries=None\)"),
        ({"retries": "3"}, "retries must be"),
        ({"retries": 2**31}, "retries must be a whole number from 0 to 2,147,483,647"),
        ({"retry": {"retries": 2**31}}, "retries must be a whole number from 0 to 2,147,483,647"),
        ({"retry": 3}, "retry must be a RetryPolicy"),
        ({"retry": {"frist": 3}}, "unknown key 'frist'"),
        ({"time_limit": 0}, "time_limit must be seconds above 0"),
        ({"soft_time_limit": -1}, "soft_time_limit must be"),
        ({"publish_timeout": float("nan")}, "publish_timeout must be"),
    ],
)
def test_a_wrong_option_is_named(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Options(**keys)
    if keys.keys() & {"retries", "retry", "time_limit", "soft_time_limit", "publish_timeout"}:
        with pytest.raises(ConfigError, match=words):
            TaskOptions(**keys)


@pytest.mark.parametrize(
    "options",
    [
        Options(delay=MAX_DELAY),
        Options(delay=-MAX_DELAY),
        Options(delay=timedelta(seconds=MAX_DELAY)),
        Options(eta=0),
        Options(eta=datetime(1970, 1, 1, tzinfo=UTC)),
        Options(eta=datetime(5138, 1, 1, tzinfo=UTC)),
        Options(eta=99_999_999_999.0),
        Options(retries=2**31 - 1, time_limit=999_999_999, soft_time_limit=1e-9),
    ],
)
def test_what_is_taken_can_be_read_by_a_worker(options: Options) -> None:
    message = draft("q", "myapp.tasks:f", (), {}, options).message
    received = decode(encode(message))
    assert (received.due_at, received.retries) == (message.due_at, options.retries)


def test_a_dict_is_taken_for_a_retry_policy() -> None:
    policy: Any = {"first": 2}
    assert Options(retry=policy).retry == RetryPolicy(first=2)
    assert TaskOptions(retry=policy).retry == RetryPolicy(first=2)


def test_delay_and_eta_replace_each_other() -> None:
    assert Options(delay=5).changed(eta=7.0) == Options(eta=7.0)
    assert Options(eta=7.0).changed(delay=5) == Options(delay=5)
    with pytest.raises(ConfigError, match="not both"):
        Options().changed(delay=5, eta=7.0)
