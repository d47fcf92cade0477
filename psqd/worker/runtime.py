"""What the parts of one worker share: broker, storage, what is held, and the settings of the file."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from typing import Protocol

from psq.brokers.base import Broker, DeadLetters
from psq.functions import Allowed
from psq.message import Message
from psq.storages.base import Storage
from psqd.worker.held import Held
from psqd.worker.stall import Stall
from psqd.worker.trials import Trials

__all__ = ["Runtime", "TaskLog"]


class TaskLog(Protocol):
    """Writes the lines of a task's life (`psqd.worker.logs`)."""

    all: bool

    def started(self, message: Message, queue: str, waited: float) -> None:
        """A task starts."""

    def ended(
        self,
        message: Message,
        queue: str,
        outcome: str,
        waited: float,
        ran: float,
        detail: str = "",
        exc_text: str = "",
        level: int = 20,
    ) -> None:
        """An attempt ended."""


@dataclass(slots=True)
class Runtime:
    """Shared by the consumers of one worker; the settings are replaced by a reload.

    Attributes:
        broker: The one broker.
        storage: Where results go, or None.
        dead: Where dead letters go.
        held: What this worker holds.
        stall: The hub's heartbeat.
        allowed: The functions that may be run.
        task_log: Writes the lines of a task's life.
        max_strikes: Starts that may end with the worker's death before a task is a dead letter; 0: no limit.
        unknown_function_grace: Seconds for which a function or version that is not known yet is waited for.
        max_prefetch_bytes: Bytes that may wait for a slot in this worker.
        worker: ``host:pid``.
        prefetch_share: What each queue may prefetch of what it could start within a second, 0 to 1.
        choked: More results than fit in memory wait for the storage: nothing is received meanwhile.
        trials: Of the tasks whose workers died so often that they run alone.
    """

    broker: Broker
    storage: Storage | None
    dead: DeadLetters
    held: Held
    stall: Stall
    allowed: Allowed
    task_log: TaskLog
    max_strikes: int
    unknown_function_grace: float
    max_prefetch_bytes: int
    worker: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    trials: Trials = field(init=False)
    prefetch_share: float = 1.0
    choked: bool = False

    def __post_init__(self) -> None:
        self.trials = Trials(self.held)

    def share_prefetch(self, wanted: float) -> None:
        """Keep what waits for a slot, in all queues together, within `max_prefetch_bytes`.

        Args:
            wanted: Bytes that all queues together would prefetch if there were no limit.
        """
        self.prefetch_share = min(1.0, self.max_prefetch_bytes / wanted) if wanted else 1.0
