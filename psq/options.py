"""What can be said about a task beside its arguments: of one enqueue (`Options`), of a function (`TaskOptions`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from psq.errors import ConfigError
from psq.retry import MAX_RETRIES, RetryPolicy

if TYPE_CHECKING:
    from psq.queue import Queue

__all__ = ["Options", "TaskOptions", "is_limited", "over", "unix_time"]

#: Unix time from which on no message can be due (`psq.message`), seconds: in the year 5138.
MAX_TIME = 1e11
#: Longest delay, seconds: 1,000 years, far enough from `MAX_TIME`.
MAX_DELAY = 31_556_952_000


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What `@psq.task` says of a function. None: not said, so the queue's own.

    Attributes:
        retries: Retries after an exception.
        retry: When; what it leaves at its default is the queue's.
        time_limit: Seconds after which the task is ended.
        soft_time_limit: Seconds after which SoftTimeLimitExceeded is raised in it.
        queue: Where `delay` sends it: a Queue, a callable that gives one, a name, or None for ``default``.
        publish_timeout: Seconds that an enqueue may take.
    """

    retries: int | None = None
    retry: RetryPolicy | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    queue: Queue | Callable[[], Queue] | str | None = None
    publish_timeout: float | None = None

    def __post_init__(self) -> None:
        check(self)

    def policy(self, base: RetryPolicy) -> RetryPolicy:
        """The queue's policy, with what is said here put over it."""
        return over(base, self.retry.to_document() if self.retry is not None else None, self.retries)


@dataclass(frozen=True, slots=True)
class Options:
    """What `Queue.options` says of the enqueues that follow. None: not said.

    Attributes:
        delay: Seconds, or a timedelta, before which it must not start.
        eta: Aware datetime, or Unix time, before which it must not start.
        task_id: Its id: 1 to 200 printable ASCII characters without space, ``:`` and ``/``.
        retries: Retries after an exception.
        retry: When; what it leaves at its default is the task's or the queue's.
        time_limit: Seconds after which the task is ended.
        soft_time_limit: Seconds after which SoftTimeLimitExceeded is raised in it.
        publish_timeout: Seconds that the enqueue may take, end to end.
    """

    delay: float | timedelta | None = None
    eta: datetime | float | None = None
    task_id: str | None = None
    retries: int | None = None
    retry: RetryPolicy | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    publish_timeout: float | None = None

    def __post_init__(self) -> None:
        check(self)
        if self.delay is not None:
            if self.eta is not None:
                raise ConfigError("give delay or eta, not both")
            seconds_of(self.delay)
        if self.eta is not None:
            unix_time(self.eta)
        if self.task_id is not None:
            from psq.message import check_id

            check_id(self.task_id)

    def changed(self, **changes: Any) -> Options:
        """A copy with these changed; unknown ones are a TypeError."""
        if "delay" in changes and "eta" not in changes:
            changes["eta"] = None
        elif "eta" in changes and "delay" not in changes:
            changes["delay"] = None
        return replace(self, **changes)

    def with_those_of(self, other: Options) -> Options:
        """A copy with what `other` says put over it."""
        said = {field.name: getattr(other, field.name) for field in fields(other)}
        return self.changed(**{name: value for name, value in said.items() if value is not None})

    def due_at(self, now: float) -> float | None:
        """Unix time before which it must not start, or None."""
        if self.delay is not None:
            seconds = seconds_of(self.delay)
            return now + seconds if seconds > 0 else None
        return None if self.eta is None else unix_time(self.eta)


def over(base: RetryPolicy, retry: Mapping[str, Any] | None, retries: int | None) -> RetryPolicy:
    """A policy with a document and a number of retries put over it."""
    if retry:
        base = RetryPolicy.from_document(retry, base)
    return base if retries is None else base.merged(retries=retries)


def is_limited(
    base: RetryPolicy, task: TaskOptions | None, retry: Mapping[str, Any] | None, retries: int | None
) -> bool:
    """True where somebody said how often a task is run again: `raise Retry` has no limit otherwise.

    Args:
        base: The queue's policy; its 0 is what it has when nobody says anything.
        task: What `@task` says, or None.
        retry: Keys of a policy in the call's options, or None.
        retries: The call's own number, or None.
    """
    if retries is not None or base.retries or (retry is not None and "retries" in retry):
        return True
    return task is not None and (
        task.retries is not None or (task.retry is not None and "retries" in task.retry.to_document())
    )


def check(options: TaskOptions | Options) -> None:
    """Raise ConfigError, with what is valid, where a value is not."""
    retries = options.retries
    if retries is not None and (type(retries) is not int or not 0 <= retries <= MAX_RETRIES):
        raise ConfigError(
            f"retries must be a whole number from 0 to {MAX_RETRIES:,}, not {retries!r} "
            "(no limit: retry=RetryPolicy(retries=None))"
        )
    retry: Any = options.retry
    if isinstance(retry, Mapping):
        object.__setattr__(options, "retry", RetryPolicy.from_document(retry))
    elif retry is not None and not isinstance(retry, RetryPolicy):
        raise ConfigError(f"retry must be a RetryPolicy or a dict of its keys, not {retry!r}")
    for name in ("time_limit", "soft_time_limit", "publish_timeout"):
        value = getattr(options, name)
        if value is not None and (type(value) not in (int, float) or not 0 < value < 1e9):
            raise ConfigError(f"{name} must be seconds above 0, not {value!r}")


def seconds_of(delay: float | timedelta) -> float:
    """Seconds of a delay.

    Raises:
        ConfigError: It is none, or longer than `MAX_DELAY`.
    """
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if type(seconds) not in (int, float) or not -MAX_DELAY <= seconds <= MAX_DELAY:
        raise ConfigError(f"a delay is seconds or a timedelta, of at most {MAX_DELAY:,} s, not {delay!r}")
    return seconds


def unix_time(when: datetime | float) -> float:
    """Unix time of an aware datetime, or of itself.

    Raises:
        ConfigError: A naive datetime, which does not say which instant it means; one that no message can carry.
    """
    if isinstance(when, datetime):
        if when.utcoffset() is None:
            raise ConfigError(
                f"{when!r} has no time zone, so it does not say which instant it means: "
                "write datetime.now(timezone.utc) + timedelta(…), or give tzinfo="
            )
        seconds = when.timestamp()
    else:
        seconds = when
    if type(seconds) not in (int, float) or not 0 <= seconds < MAX_TIME:
        raise ConfigError(f"a time is an aware datetime or Unix time in seconds, between 1970 and 5138, not {when!r}")
    return float(seconds)


OPTION_NAMES = frozenset(field.name for field in fields(Options))
