"""The settings of one queue."""

from __future__ import annotations

import builtins
import difflib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from psq.brokers.base import QueueSpec
from psq.storages.base import CANCELLED, FAILED, FINISHED, QUEUED, RETRYING, SCHEDULED, STARTED
from psqd.config_rules import choice, flag, key, number, problems_error, text, texts, whole

if TYPE_CHECKING:
    from psq.retry import RetryPolicy

__all__ = [
    "BROADCAST_KEYS",
    "DEFAULT_MAX_LEASE",
    "QueueConfig",
    "QueueDefaults",
    "RetryConfig",
    "Section",
    "check_dotted",
    "queue_name_problem",
]

#: Seconds after which a task is no longer kept leased; half a day, a choice.
DEFAULT_MAX_LEASE = 12 * 3600.0
#: Seconds that a task with a time limit keeps its lease beyond it, to clean up; a choice.
LEASE_GRACE = 60.0
#: Shortest and longest ack deadline of Pub/Sub, seconds.
LEAST_LEASE, MOST_LEASE = 10, 600
#: Longest time that a setting may name, seconds; a year, to catch milliseconds.
YEAR = 366 * 86400
STATES = (QUEUED, SCHEDULED, STARTED, RETRYING, FINISHED, FAILED, CANCELLED)
#: Keys that only a broadcast queue has.
BROADCAST_KEYS = ("scope", "hosts", "on_drain")

_BUILTIN_ERRORS = frozenset(
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
)
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class Section(BaseModel):
    """A section of the file: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


def check_dotted(value: str) -> str:
    """``module:attr.path``, as it was given.

    Raises:
        ValueError: It is not of this form.
    """
    module, colon, path = value.partition(":")
    if not colon or not _DOTTED.fullmatch(module) or not _DOTTED.fullmatch(path):
        raise ValueError
    return value


def _check_exception(value: str) -> str:
    module, colon, name = value.rpartition(":")
    if not _DOTTED.fullmatch(name) or (colon and not _DOTTED.fullmatch(module)):
        raise ValueError
    if not colon and "." not in name and name not in _BUILTIN_ERRORS:
        raise ValueError(_near_builtin(name))
    return value


def _near_builtin(name: str) -> str:
    near = difflib.get_close_matches(name, _BUILTIN_ERRORS, n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def _check_state(value: str) -> str:
    if value not in STATES:
        raise ValueError
    return value


def _check_host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252})", value):
        raise ValueError
    return value


_exceptions = texts(
    _check_exception,
    valid="a list of exception names",
    example="ConnectionError, myapp.errors:Busy",
    each="the name of a builtin exception or `module:Class`",
)


def queue_name_problem(name: str) -> str:
    """Why a queue can't have this name on any broker, "" when it can; the broker has rules of its own."""
    if name.endswith(("-dead", "-shared")):
        return f"ends in -{name.rpartition('-')[2]}, which names of the broker's own topics and subscriptions end in"
    if not name or len(name) > 200 or not name.isprintable() or any(c.isspace() or c in "/\\" for c in name):
        return "is no name for a queue: it must be 1 to 200 characters without spaces and slashes"
    return ""


class RetryConfig(Section):
    """How a task is tried again; see `psq.retry.RetryPolicy`."""

    first: Annotated[float, number(0, YEAR)] = key(1.0, "Pause before the second attempt.", unit="seconds")
    factor: Annotated[float, number(1, 1000, of="")] = key(2.0, "Each further pause is so many times longer.")
    max: Annotated[float, number(0, YEAR)] = key(3600.0, "Longest pause.", unit="seconds")
    jitter: Annotated[float, number(0, 1, of="")] = key(
        0.1, "Each pause is longer or shorter by up to this share of it, at random."
    )
    on: Annotated[list[str], _exceptions] = key([], "Only these exceptions are tried again; empty: all.")
    not_on: Annotated[list[str], _exceptions] = key([], "These exceptions are not tried again.")

    @model_validator(mode="after")
    def _check(self) -> RetryConfig:
        if self.first > self.max:
            raise problems_error([(("first",), f"must be at most `max` ({self.max:g}), not {self.first:g}")])
        return self


def _retry_section(value: Any) -> Any:
    return {} if value is None else value


class QueueConfig(Section):
    """One queue: how many tasks at once, its leases, its limits, what is kept."""

    concurrency: Annotated[int, whole(1, 10_000)] = key(
        100, "Most tasks of this queue that run at once in one daemon.", unit="tasks"
    )
    type: Annotated[Literal["shared", "broadcast"], choice("shared", "broadcast")] = key(
        "shared", "`shared`: each task runs once. `broadcast`: every worker runs it.", reload="renew"
    )
    scope: Annotated[Literal["process", "host"], choice("process", "host")] = key(
        "process", "(broadcast) Every process runs each task, or one process of every host.", reload="renew"
    )
    hosts: Annotated[
        list[str], texts(_check_host, valid="a list of host names", example="web-1, web-2", each="a host's name")
    ] = key([], "(broadcast) The hosts whose copies `psq declare` makes, for workers that may not make their own.")
    on_drain: Annotated[Literal["keep", "delete"], choice("keep", "delete")] = key(
        "keep",
        "(broadcast) `keep`: what is sent while this worker is away waits for it, for a day. "
        "`delete`: its subscription goes when it stops.",
        reload="renew",
    )
    ack: Annotated[Literal["late", "early"], choice("late", "early")] = key(
        "late",
        "`late`: a task is acknowledged after it ended, so it runs at least once. "
        "`early`: before it starts, so it runs at most once.",
    )
    ack_deadline: Annotated[float, number(LEAST_LEASE, MOST_LEASE)] = key(
        10.0,
        "The first lease of a delivery; a delivery lost on its way comes again after it.",
        unit="seconds",
        reload="renew",
    )
    lease: Annotated[float, number(LEAST_LEASE, MOST_LEASE)] = key(
        30.0,
        "Each extension of a lease; the tasks of a machine that lost its power come again after it.",
        unit="seconds",
    )
    max_lease: Annotated[float | None, number(LEAST_LEASE, YEAR, nullable=True)] = key(
        None,
        "A task is kept leased no longer than this; empty: 12 hours, or `time_limit` and a minute where that is more.",
        unit="seconds",
    )
    retries: Annotated[int, whole(0, 1_000_000)] = key(
        0, "How often a task that raised an exception is tried again.", unit="attempts"
    )
    retry: Annotated[RetryConfig, BeforeValidator(_retry_section)] = key(
        RetryConfig(), "How it is tried again; a task's own options win."
    )
    time_limit: Annotated[float | None, number(above=0, most=YEAR, nullable=True)] = key(
        None, "A task that runs longer is killed and fails; empty: no limit.", unit="seconds"
    )
    soft_time_limit: Annotated[float | None, number(above=0, most=YEAR, nullable=True)] = key(
        None, "SoftTimeLimitExceeded is raised in a task that runs longer; empty: never.", unit="seconds"
    )
    receive: Annotated[Literal["pull", "stream"], choice("pull", "stream", later=("stream",))] = key(
        "pull", "How Pub/Sub is asked for messages. `stream` is not available yet.", reload="renew"
    )
    serializer: Annotated[Literal["json", "pickle"], choice("json", "pickle", later=("pickle",))] = key(
        "json", "How arguments and results are written. `pickle` is not available yet.", reload="renew"
    )
    deduplicate: Annotated[bool, flag(later=True)] = key(
        False, "A task id that has finished is not run again. `true` is not available yet."
    )
    store_on_status: Annotated[
        list[str],
        texts(
            _check_state,
            valid="a list of states",
            example="finished, failed, cancelled",
            each=f"one of {', '.join(STATES)}",
        ),
    ] = key([FINISHED, FAILED, CANCELLED], "The states of a task that are written to the storage.")
    result_ttl: Annotated[float, number(1, 100 * YEAR)] = key(
        86_400.0, "How long a result is kept, counted from its end.", unit="seconds"
    )
    extra_context: Annotated[
        str | None,
        text(check_dotted, valid="`module:attribute`, such as `myapp:app.app_context`", nullable=True),
    ] = key(None, "A callable that gives a context manager; each task runs inside it.")

    #: Broadcast keys are an error on a queue of another type; under `defaults:` they wait for one that is.
    _strict_type: ClassVar[bool] = True

    @property
    def broadcast(self) -> bool:
        """Every worker gets a copy."""
        return self.type == "broadcast"

    @property
    def policy(self) -> RetryPolicy:
        """The retry policy of tasks that bring none of their own."""
        from psq.retry import RetryPolicy

        retry = self.retry
        return RetryPolicy(
            retries=self.retries,
            first=retry.first,
            factor=retry.factor,
            max=retry.max,
            jitter=retry.jitter,
            on=tuple(retry.on),
            not_on=tuple(retry.not_on),
        )

    def spec(self, name: str, member: str = "") -> QueueSpec:
        """What the broker must know of this queue.

        Args:
            name: The queue's name.
            member: (broadcast) the stable name of this worker's copy.
        """
        return QueueSpec(
            name,
            broadcast=self.broadcast,
            member=member,
            ack_deadline=self.ack_deadline,
            delete_on_close=self.broadcast and self.on_drain == "delete",
        )

    @property
    def lease_limit(self) -> float:
        """Seconds after which a started task is no longer kept leased; a task's own time limit may be longer."""
        if self.max_lease is not None:
            return self.max_lease
        return max(DEFAULT_MAX_LEASE, (self.time_limit or 0.0) + LEASE_GRACE)

    def _problems(self) -> Iterator[tuple[tuple[str, ...], str]]:
        soft, hard, longest = self.soft_time_limit, self.time_limit, self.max_lease
        if soft is not None and hard is not None and soft >= hard:
            yield ("soft_time_limit",), f"must be less than `time_limit` ({hard:g}), not {soft:g}"
        if longest is not None and longest < self.lease:
            yield ("max_lease",), f"must be at least `lease` ({self.lease:g}), not {longest:g}"
        if longest is not None and hard is not None and longest < hard:
            yield ("max_lease",), f"must be at least `time_limit` ({hard:g}), not {longest:g}"
        if self._strict_type and not self.broadcast:
            for name in BROADCAST_KEYS:
                if getattr(self, name) != type(self).model_fields[name].default:
                    yield (name,), "is for queues of `type: broadcast` only"

    @model_validator(mode="after")
    def _check(self) -> QueueConfig:
        if problems := list(self._problems()):
            raise problems_error(problems)
        return self


class QueueDefaults(QueueConfig):
    """What queues share, once: the keys of a queue under `defaults:`."""

    _strict_type: ClassVar[bool] = False
