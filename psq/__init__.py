"""psq: a distributed task queue on Google Cloud Pub/Sub.

    import psq

    q = psq.Queue()                   # or psq.Queue(psq.Client(project="my-project"))
    r = q.enqueue(adder, 5, 6)
    r.result(timeout=30)              # 11

Names are loaded when they are first used: this import touches nothing else.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for true; `typing` itself need not be loaded

if TYPE_CHECKING:
    from psq.client import Client as Client
    from psq.connect import connect as connect
    from psq.context import current_queue as current_queue
    from psq.context import current_task as current_task
    from psq.context import queue_context as queue_context
    from psq.context import task_context as task_context
    from psq.errors import BrokerError as BrokerError
    from psq.errors import BrokerRefused as BrokerRefused
    from psq.errors import BrokerUnavailable as BrokerUnavailable
    from psq.errors import ConfigError as ConfigError
    from psq.errors import EnqueueFailed as EnqueueFailed
    from psq.errors import FunctionRefused as FunctionRefused
    from psq.errors import MessageTooLarge as MessageTooLarge
    from psq.errors import MissingDependency as MissingDependency
    from psq.errors import NoStorage as NoStorage
    from psq.errors import PsqError as PsqError
    from psq.errors import PublishUnknown as PublishUnknown
    from psq.errors import ResultTimeout as ResultTimeout
    from psq.errors import SerializationError as SerializationError
    from psq.errors import SoftTimeLimitExceeded as SoftTimeLimitExceeded
    from psq.errors import StorageError as StorageError
    from psq.errors import StorageRefused as StorageRefused
    from psq.errors import StorageUnavailable as StorageUnavailable
    from psq.errors import TaskCancelled as TaskCancelled
    from psq.errors import TaskFailed as TaskFailed
    from psq.errors import TaskInterrupted as TaskInterrupted
    from psq.errors import TaskNotFound as TaskNotFound
    from psq.errors import TimeLimitExceeded as TimeLimitExceeded
    from psq.queue import BroadcastQueue as BroadcastQueue
    from psq.queue import Queue as Queue
    from psq.result import Task as Task
    from psq.result import TaskResult as TaskResult
    from psq.retry import RetryPolicy as RetryPolicy
    from psq.storages.base import Storage as Storage
    from psq.storages.datastore import DatastoreStorage as DatastoreStorage
    from psq.storages.sqlite import SQLiteStorage as SQLiteStorage
    from psq.task import Retry as Retry
    from psq.task import task as task

__version__ = "1.0.0"

_ERRORS = (
    "BrokerError BrokerRefused BrokerUnavailable ConfigError EnqueueFailed FunctionRefused MessageTooLarge "
    "MissingDependency NoStorage PsqError PublishUnknown ResultTimeout SerializationError SoftTimeLimitExceeded "
    "StorageError StorageRefused StorageUnavailable TaskCancelled TaskFailed TaskInterrupted TaskNotFound "
    "TimeLimitExceeded"
)
# Where each name is; a module whose name is given itself is callable.
_PLACES = {
    **dict.fromkeys(_ERRORS.split(), "psq.errors"),
    "BroadcastQueue": "psq.queue",
    "Client": "psq.client",
    "DatastoreStorage": "psq.storages.datastore",
    "Queue": "psq.queue",
    "Retry": "psq.task",
    "RetryPolicy": "psq.retry",
    "SQLiteStorage": "psq.storages.sqlite",
    "Storage": "psq.storages.base",
    "Task": "psq.result",
    "TaskResult": "psq.result",
    "connect": "",
    "current_queue": "psq.context",
    "current_task": "psq.context",
    "queue_context": "psq.context",
    "task": "",
    "task_context": "psq.context",
}

__all__ = ["__version__", *_PLACES]  # noqa: PLE0604  (all are strings)


def __getattr__(name: str) -> object:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'psq' has no attribute {name!r}")
    from importlib import import_module

    if not place:
        return import_module(f"psq.{name}")  # leaves itself here
    value: object = getattr(import_module(place), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
