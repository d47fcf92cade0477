"""The seam to a storage: results, dead letters, the schedule, and claims."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from psq.brokers.base import DeadLetters
from psq.group_commit import Done

if TYPE_CHECKING:
    from psq.result import Task

__all__ = [
    "CANCELLED",
    "FAILED",
    "FINISHED",
    "QUEUED",
    "RETRYING",
    "SCHEDULED",
    "STARTED",
    "TERMINAL",
    "Scheduled",
    "Storage",
    "TaskRecord",
]

QUEUED, SCHEDULED, STARTED, RETRYING = "queued", "scheduled", "started", "retrying"
FINISHED, FAILED, CANCELLED = "finished", "failed", "cancelled"
#: States that stay.
TERMINAL = frozenset((FINISHED, FAILED, CANCELLED))


@dataclass(slots=True)
class TaskRecord:
    """A task as a storage keeps it.

    Attributes:
        id: Task id.
        state: One of the states above.
        queue: Name of its queue.
        function: ``module:qualname``.
        attempt: psq's own count, 1 for the first.
        run: Grows when a dead letter is requeued.
        enqueued_at: Unix time, seconds.
        started_at: Unix time, or None.
        finished_at: Unix time of the terminal state, or None.
        result: The result as tagged JSON, UTF-8 (`psq.serializers`), or None.
        error: ``{"type": "module:QualName", "message": …, "traceback": …}``, or None.
        worker: ``host:pid`` of who wrote this.
        expires_at: Unix time after which it may be swept, or None.
    """

    id: str
    state: str
    queue: str = ""
    function: str = ""
    attempt: int = 1
    run: int = 1
    enqueued_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    result: bytes | None = None
    error: Mapping[str, Any] | None = None
    worker: str = ""
    expires_at: float | None = None

    @property
    def status(self) -> str:
        """The state, by the name that psq 0.8 had for it."""
        return self.state

    def rank(self) -> tuple[int, int, bool]:
        """Orders records of one task: a later run, then a later attempt, then a terminal state, replaces."""
        return (self.run, self.attempt, self.state in TERMINAL)


@dataclass(slots=True)
class Scheduled:
    """A message that waits for its time in the storage.

    Attributes:
        id: Task id and attempt, ``id:attempt``; with `due_at` it is the key, so that moving twice keeps one.
        due_at: Unix time, seconds.
        queue: Name of the queue to publish to.
        data: The document.
        attributes: Beside it.
        key: Set by the storage on what `due` returns; what `unschedule` takes.
    """

    id: str
    due_at: float
    queue: str
    data: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)
    key: str = ""


class Storage(DeadLetters):
    """A storage, for both sides. Safe from any thread and greenlet; made anew after a fork.

    Methods that take `done` return at once, share requests (group commit), repeat what is
    transient for as long as it takes, and call ``done(None, error)`` through `dispatch`.
    The others block: a thread, or a greenlet.
    """

    scheme: ClassVar[str]
    #: Listings work, so dead letters can live here.
    can_list: ClassVar[bool] = True
    #: `schedule`, `due` and `claim` work.
    can_schedule: ClassVar[bool] = True

    #: States that are written; psq 0.8's name. Set per instance or by `store_on_status:`.
    store_on_status: Sequence[str] = (FINISHED, FAILED, CANCELLED)

    dispatch: Callable[[Callable[[], None]], None] | None = None

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """What makes the same storage; no secrets."""

    @property
    @abc.abstractmethod
    def identity(self) -> str:
        """Names the place, equal wherever it is reached from the same way: put in each message as `reply`."""

    @abc.abstractmethod
    def put(self, record: TaskRecord, done: Done) -> None:
        """Write a record, unless one of the same or a higher rank with a terminal state is there.

        Terminal states stay: an existing terminal record is replaced only by a record of a later
        attempt or run. That a record was not written for this reason is no error.
        StorageRefused: this record is not acceptable (over `max_result_bytes`); others are not affected.
        """

    @abc.abstractmethod
    def get(self, ids: Sequence[str]) -> dict[str, TaskRecord]:
        """Read records by id in one request; unknown ids are left out.

        Raises:
            StorageUnavailable: Try again.
            StorageRefused: No permission.
        """

    @abc.abstractmethod
    def find(
        self,
        *,
        state: str | None = None,
        queue: str | None = None,
        function: str | None = None,
        limit: int | None = None,
    ) -> Iterator[TaskRecord]:
        """Records, newest first, filtered."""

    @abc.abstractmethod
    def delete(self, ids: Sequence[str]) -> None:
        """Delete records (and their parts); unknown ids are no error."""

    @abc.abstractmethod
    def schedule(self, item: Scheduled, done: Done) -> None:
        """Keep a message until its time. The same (id, due_at) twice is kept once."""

    @abc.abstractmethod
    def due(self, shard: int, now: float, limit: int) -> list[Scheduled]:
        """What is due in a shard (0 to `shards` - 1), soonest first."""

    @abc.abstractmethod
    def unschedule(self, keys: Sequence[str]) -> None:
        """Delete by `Scheduled.key`, after they were published."""

    #: Shards of the schedule; each is polled by the daemon that has claimed it.
    shards: ClassVar[int] = 4

    @abc.abstractmethod
    def claim(self, key: str, owner: str, seconds: float) -> bool:
        """Take or prolong a claim: True while nobody else holds it.

        Args:
            key: What is claimed, ``schedule:0``.
            owner: Who claims; the same owner prolongs.
            seconds: How long from now.
        """

    @abc.abstractmethod
    def release(self, key: str, owner: str) -> None:
        """Let go of a claim that `owner` holds; otherwise nothing."""

    def sweep(self, now: float) -> int:
        """Delete what has expired; the count. A storage with a TTL of its own does nothing."""
        return 0

    def tick(self) -> None:
        """As `Broker.tick`."""

    def pending_bytes(self) -> int:
        """Bytes handed to `put` and not yet answered: what back-pressure looks at."""
        return 0

    def reset_after_fork(self) -> None:
        """As `Broker.reset_after_fork`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Write what waits, then let go. Idempotent."""

    # psq 0.8's names

    def get_task(self, task_id: str) -> Task | None:
        """One task with its value, or None. Blocking."""
        from psq.result import Task

        record = self.get([task_id]).get(task_id)
        return None if record is None else Task(record)

    def list_tasks(self) -> Iterator[Task]:
        """All tasks, newest first. Blocking."""
        from psq.result import Task

        return map(Task, self.find())

    def delete_task(self, task_id: str) -> None:
        """Delete one record."""
        self.delete([task_id])
