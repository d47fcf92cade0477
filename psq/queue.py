"""`Queue` and `BroadcastQueue`: enqueue functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from psq.batch import Batch, batch_for
from psq.brokers.base import QueueSpec
from psq.client import DEFAULT, Client, Default
from psq.context import ExtraContext
from psq.errors import ConfigError
from psq.fork import reset_after_fork
from psq.options import Options
from psq.publish import Call, Draft, draft, outgoing, send, send_many, split_call
from psq.result import TaskResult
from psq.signatures import bind, checked_name, client_from
from psq.storages.base import Storage

if TYPE_CHECKING:
    from psq.retry import RetryPolicy

__all__ = ["BroadcastQueue", "Queue"]

Q = TypeVar("Q", bound="Queue")


class _Home:
    """What a queue and its copies share: the client and the storage, resolved at first use."""

    __slots__ = ("_client", "checked", "given")

    def __init__(self, client: Client | None, given: Storage | str | Default | None) -> None:
        self._client, self.given = client, given
        self.checked: set[str] = set()

    @property
    def has_client(self) -> bool:
        return self._client is not None

    @property
    def client(self) -> Client:
        if self._client is None:
            from psq.connect import default_client

            self._client = default_client()
        return self._client


class Queue:
    """A named stream of tasks. Immutable; safe from any number of threads and greenlets, and after a fork.

    Making one connects nothing: the client library is loaded at the first enqueue.

    Args:
        client: A `psq.Client`; default: as PSQ_BROKER says, else the embedded default.
        name: Letters, digits, ``-``, ``_``, ``.``, ``~``, ``+``, ``%``; at most 200.
        storage: Where results are: an object, a URL, or None for nowhere. Default: as PSQ_STORAGE says where
            no client is given; SQLite's own file; nowhere with Pub/Sub.
        extra_context: Called by the worker for a context manager around each task, as ``app.app_context``.
        asynchronous: False runs each task inline, when it is enqueued: for tests.

    psq 0.8's signature is understood as well: ``Queue(publisher_client, subscriber_client, project, name, …)``.

    Raises:
        ConfigError: An argument is not valid; the text says what is.

    Attributes:
        name: Its name.
        extra_context: As given.
        asynchronous: As given.
    """

    #: Every worker gets a copy of each task.
    broadcast: ClassVar[bool] = False
    _default_name: ClassVar[str] = "default"

    if TYPE_CHECKING:

        @overload
        def __init__(
            self,
            client: Client | None = None,
            name: str = "default",
            storage: Storage | str | Default | None = DEFAULT,
            extra_context: ExtraContext | None = None,
            asynchronous: bool = True,
        ) -> None: ...

        @overload
        def __init__(
            self,
            publisher_client: Any,
            subscriber_client: Any,
            project: str,
            name: str = "default",
            storage: Storage | str | Default | None = None,
            extra_context: ExtraContext | None = None,
            asynchronous: bool = True,
        ) -> None: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kind = type(self).__name__
        bound = bind(args, kwargs, kind)
        self.name: str = checked_name(bound.get("name", self._default_name))
        self._spec = QueueSpec(self.name, broadcast=self.broadcast)
        self.extra_context: ExtraContext | None = bound.get("extra_context")
        self.asynchronous = bool(bound.get("asynchronous", True))
        given = bound.get("storage", DEFAULT)
        if given is not None and not isinstance(given, (Storage, str, Default)):
            raise ConfigError(
                f"storage takes a storage object such as psq.DatastoreStorage(), a URL, or None; not {given!r}"
            )
        if self.extra_context is not None and not callable(self.extra_context):
            several = tuple(self.extra_context) if isinstance(self.extra_context, Iterable) else (self.extra_context,)
            if not all(callable(item) for item in several):
                raise ConfigError("extra_context takes a callable that gives a context manager, or several")
            self.extra_context = several
        if isinstance(given, Storage):
            reset_after_fork(given)
        self._home = _Home(client_from(bound.get("client"), kind), given)
        self._options: Options | None = None

    @property
    def client(self) -> Client:
        """Its client."""
        return self._home.client

    @property
    def storage(self) -> Storage | None:
        """Where results are; None: nowhere. Made at first use."""
        home = self._home
        if isinstance(home.given, Storage) or home.given is None:
            return home.given
        if isinstance(home.given, Default):
            if not self.asynchronous:
                return None  # inline results are in the TaskResult itself
            return home.client.storage
        return home.client.storage_for(home.given)

    @property
    def spec(self) -> QueueSpec:
        """What a broker must know of it."""
        return self._spec

    # enqueue

    def enqueue(self, f: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> TaskResult:
        """Enqueue a call; returns when the broker has accepted it.

        Blocks this thread or greenlet, others share the request. Every argument after the function is the
        function's own, whatever its name; options have `options`.

        Args:
            f: A function at the top of a module, or its name, ``pkg.mod:func`` or ``pkg.mod.func``.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Raises:
            FunctionRefused: A worker could not run the function; says why and what to write.
            SerializationError: An argument can't be sent; named. MessageTooLarge: all are too large.
            BrokerUnavailable: Nothing was sent; try again.
            PublishUnknown: It may have been accepted; enqueue again with the same task_id.
            BrokerRefused: No permission, or a name that the broker can't have.
        """
        task = draft(self.name, f, args, kwargs, self._options)
        result = TaskResult._of(task.message.id, self)
        if not self.asynchronous:
            self._run_inline(task, result)
            batch = batch_for(self)
            if batch is not None:
                batch.join(result)
            return result
        batch = batch_for(self)
        if batch is not None:
            result._batch = batch
            batch.add(task, result)
            return result
        self._send(task)
        return result

    def enqueue_in(
        self, seconds: float | timedelta, f: Callable[..., Any] | str, /, *args: Any, **kwargs: Any
    ) -> TaskResult:
        """Enqueue a call that does not start before a pause is over; see `enqueue`.

        Args:
            seconds: Seconds, or a timedelta.
            f: The function.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
        """
        return self._with((self._options or Options()).changed(delay=seconds)).enqueue(f, *args, **kwargs)

    def enqueue_at(
        self, when: datetime | float, f: Callable[..., Any] | str, /, *args: Any, **kwargs: Any
    ) -> TaskResult:
        """Enqueue a call that does not start before a time; see `enqueue`.

        Args:
            when: An aware datetime, or Unix time. A naive datetime is refused.
            f: The function.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
        """
        return self._with((self._options or Options()).changed(eta=when)).enqueue(f, *args, **kwargs)

    def enqueue_many(self, calls: Iterable[Call]) -> list[TaskResult]:
        """Enqueue many calls in as few requests as the limits allow; returns when all are accepted.

        Nothing is sent where one of them is not valid.

        Args:
            calls: ``(f, args, kwargs)`` each; kwargs, or both, may be left out.

        Returns:
            The results, in order.

        Raises:
            FunctionRefused, SerializationError, MessageTooLarge: One is not valid; its index is a note of the error.
            EnqueueFailed: Some were not accepted; `errors` lists (index, task id, error).
        """
        drafts: list[Draft] = []
        results: list[TaskResult] = []
        for index, call in enumerate(calls):
            try:
                f, args, kwargs = split_call(call)
                drafts.append(draft(self.name, f, args, kwargs, self._options))
            except Exception as error:
                error.add_note(f"It is item {index} of enqueue_many; nothing was sent.")
                raise
            results.append(TaskResult._of(drafts[-1].message.id, self))
        if self._options is not None and self._options.task_id is not None and len(drafts) > 1:
            raise ConfigError("a task_id names one task: give it to a single enqueue")
        self._send_all(drafts, results)
        return results

    def batch(self) -> Batch:
        """``with q.batch() as results:`` sends together, at the end, what the block enqueues on this queue."""
        return Batch(self)

    # options

    def options(
        self: Q,
        *,
        delay: float | timedelta | Default | None = DEFAULT,
        eta: datetime | float | Default | None = DEFAULT,
        task_id: str | Default | None = DEFAULT,
        retries: int | Default | None = DEFAULT,
        retry: RetryPolicy | Mapping[str, Any] | Default | None = DEFAULT,
        time_limit: float | Default | None = DEFAULT,
        soft_time_limit: float | Default | None = DEFAULT,
        publish_timeout: float | Default | None = DEFAULT,
    ) -> Q:
        """A copy of the queue whose enqueues have these options; those not named stay, None takes one away.

        Args:
            delay: Seconds, or a timedelta, before which it does not start.
            eta: Aware datetime, or Unix time, before which it does not start.
            task_id: The task's id. Enqueueing again with the same id is safe: two copies count as one task.
            retries: Retries after an exception.
            retry: A RetryPolicy, or a dict of its keys.
            time_limit: Seconds after which the task is ended.
            soft_time_limit: Seconds after which SoftTimeLimitExceeded is raised in it.
            publish_timeout: Seconds that an enqueue may take, end to end; 10 by default.

        Raises:
            ConfigError: A value is not valid, a naive datetime for instance.
        """
        said = {
            "delay": delay,
            "eta": eta,
            "task_id": task_id,
            "retries": retries,
            "retry": retry,
            "time_limit": time_limit,
            "soft_time_limit": soft_time_limit,
            "publish_timeout": publish_timeout,
        }
        changes = {name: value for name, value in said.items() if not isinstance(value, Default)}
        return self._with((self._options or Options()).changed(**changes))

    def _with(self: Q, options: Options) -> Q:
        """A copy with these options, over those it has."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._options = options
        return copy

    def named(self: Q, name: str) -> Q:
        """A queue of another name, of the same kind, with the same client, storage and contexts."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.name = checked_name(name)
        copy._spec = QueueSpec(copy.name, broadcast=self.broadcast)
        copy._options = None
        return copy

    def is_same(self, other: Queue) -> bool:
        """True for the same queue, whatever the options."""
        return self._home is other._home and self.name == other.name

    # sending

    def _send(self, task: Draft) -> None:
        broker = self._broker()
        storage = self.storage
        self.client.tell(storage)
        send(broker, outgoing(broker, self._spec, storage, task), task.timeout)

    def _send_all(self, drafts: Sequence[Draft], results: Sequence[TaskResult]) -> None:
        if not self.asynchronous:
            for task, result in zip(drafts, results, strict=True):
                self._run_inline(task, result)
            return
        broker = self._broker()
        storage, spec = self.storage, self._spec
        self.client.tell(storage)
        messages = []
        for index, task in enumerate(drafts):
            try:
                messages.append((outgoing(broker, spec, storage, task), task.timeout))
            except Exception as error:
                error.add_note(f"It is item {index} of the batch; nothing was sent.")
                raise
        send_many(broker, messages, results)

    def _run_inline(self, task: Draft, result: TaskResult) -> None:
        from psq.inline import run

        result._record = run(self, task.message)

    def _broker(self) -> Any:
        broker = self.client.broker
        if self.name not in self._home.checked:
            broker.check_queue_name(self.name)
            self._home.checked.add(self.name)
        return broker

    def __repr__(self) -> str:
        return f"<psq.{type(self).__name__} {self.name!r}>"


class BroadcastQueue(Queue):
    """A queue whose tasks go to every worker that serves it: each gets a copy. See `Queue`.

    With a storage, the result is that of the worker that ends first (one that needed a later attempt replaces it);
    what became of it on each is kept as ``TASK-ID@WORKER``.
    """

    broadcast: ClassVar[bool] = True
    _default_name: ClassVar[str] = "broadcast"
