"""From a function and its arguments to a message that the broker has accepted."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from psq.brokers.base import Broker, Outgoing, QueueSpec
from psq.concurrency import Waiter, original
from psq.errors import ConfigError, EnqueueFailed, MessageTooLarge, PublishUnknown
from psq.functions import OPTIONS_ATTRIBUTE, name_of
from psq.message import Message, attributes, encode, new_id
from psq.options import Options
from psq.serializers import dump_call

if TYPE_CHECKING:
    from psq.storages.base import Storage

__all__ = ["DEFAULT_PUBLISH_TIMEOUT", "Call", "Draft", "draft", "outgoing", "send", "send_many", "split_call"]

#: A call to enqueue: the function, its positional and its keyword arguments; the latter two may be left out.
Call = Sequence[Any]

#: Seconds that an enqueue may take, end to end.
DEFAULT_PUBLISH_TIMEOUT = 10.0
#: Seconds after the timeout at which a broker that has not called back is given up.
GRACE = 5.0
#: More bytes than the attributes of any message have.
MAX_ATTRIBUTE_BYTES = 2000
#: Most messages, and bytes of them, that `send_many` hands to the broker at a time: what it holds in memory.
WINDOW, WINDOW_BYTES = 10_000, 64 * 1024 * 1024


def split_call(call: Call) -> tuple[Callable[..., Any] | str, Sequence[Any], Mapping[str, Any]]:
    """Function, positional and keyword arguments of an item of `enqueue_many`.

    Raises:
        ConfigError: It is no such item.
    """
    if isinstance(call, str) or callable(call) or not isinstance(call, (tuple, list)) or not 1 <= len(call) <= 3:
        raise ConfigError(f"enqueue_many takes (f, args, kwargs) each, not {call!r:.80}")
    f = call[0]
    args: Any = call[1] if len(call) > 1 else ()
    kwargs: Any = call[2] if len(call) > 2 else {}
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs, Mapping):
        raise ConfigError(
            f"enqueue_many takes (f, args, kwargs): args a tuple or list, kwargs a dict; not {call!r:.80}"
        )
    return f, args, kwargs


class Draft(NamedTuple):
    """A task that was checked, and not yet encoded and sent; `timeout` is for its publishing, seconds."""

    message: Message
    timeout: float


def draft(
    queue: str,
    f: Callable[..., Any] | str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    options: Options | None,
) -> Draft:
    """Check and encode a task. Sends nothing.

    Raises:
        FunctionRefused: A worker could not run the function.
        SerializationError: An argument can't be said; the text names it.
    """
    function = name_of(f)
    tagged, named = dump_call(args, kwargs, function)
    now = time.time()
    message = Message(new_id(), function, tagged, named, queue, now)
    timeout: float | None = None
    if options is not None:
        message.due_at = options.due_at(now)
        message.retries = options.retries
        message.retry = None if options.retry is None else options.retry.to_document() or None
        message.time_limit, message.soft_time_limit = options.time_limit, options.soft_time_limit
        timeout = options.publish_timeout
        if options.task_id is not None:
            message.id = options.task_id
    if timeout is None:
        own = getattr(f, OPTIONS_ATTRIBUTE, None)
        timeout = (own.publish_timeout if own is not None else None) or DEFAULT_PUBLISH_TIMEOUT
    return Draft(message, timeout)


def outgoing(broker: Broker, spec: QueueSpec, storage: Storage | None, task: Draft) -> Outgoing:
    """Encode a draft for a broker.

    Raises:
        MessageTooLarge: Over the broker's limit; the text has size and limit.
    """
    message = task.message
    if storage is not None:
        message.reply = storage.identity
    data, beside = encode(message), attributes(message)
    size = len(data)
    if size > broker.max_message_bytes - MAX_ATTRIBUTE_BYTES:
        size += sum(len(key) + len(value.encode()) for key, value in beside.items())
    if size > broker.max_message_bytes:
        raise MessageTooLarge(
            f"the arguments of {message.function} make a message of {size:,} bytes, and the broker takes "
            f"{broker.max_message_bytes:,}: put the data somewhere else and send a reference to it",
            size=size,
            limit=broker.max_message_bytes,
        )
    return Outgoing(spec, data, beside, message.due_at, message.id)


def send(broker: Broker, message: Outgoing, timeout: float) -> None:
    """Publish, and wait until the broker has it. Who is killed while waiting leaves the message: it is still sent.

    Raises:
        BrokerUnavailable: Nothing was sent.
        PublishUnknown: It was sent, and may have been accepted.
        BrokerRefused: The broker said no.
    """
    waiter = Waiter()
    broker.publish(message, lambda _, error: waiter.set(error), timeout=timeout)
    if not waiter.wait(1.0):
        _await(broker, waiter, time.monotonic() + timeout + GRACE - 1.0)
        if not waiter.is_set():
            raise PublishUnknown(_no_answer(message, timeout), task_id=message.task_id)
    if waiter.value is not None:
        raise _own(waiter.value, message.task_id)


def _await(broker: Broker, waiter: Waiter, deadline: float) -> None:
    while time.monotonic() < deadline:
        broker.tick()  # a request that hangs holds back the next for a second only
        if waiter.wait(1.0):
            return


def _no_answer(message: Outgoing, timeout: float) -> str:
    return (
        f"the task {message.task_id} was sent to {message.queue.name!r} and no answer came in {timeout:g} s: "
        "it may have been accepted. Enqueue it again with the same task_id"
    )


def _own(error: Exception, task_id: str) -> Exception:
    """A copy for this caller: one request's error goes to many, and each raises its own."""
    try:
        mine = copy.copy(error)
    except Exception:
        return error
    mine.__cause__ = error.__cause__
    if isinstance(mine, PublishUnknown) and mine.task_id is None:
        mine.task_id = task_id
    return mine


def send_many(broker: Broker, messages: Sequence[tuple[Outgoing, float]], results: Sequence[Any]) -> None:
    """Publish many, in as few requests as the limits allow, and wait for all.

    Args:
        broker: Where to.
        messages: Each with its timeout, seconds from when its window begins.
        results: What `EnqueueFailed` lists.

    Raises:
        EnqueueFailed: Some were not accepted, or not answered; they are listed.
    """
    errors: dict[int, Exception] = {}
    for window in _windows(messages):
        errors.update(_send_window(broker, window))
    if errors:
        listed = [(index, messages[index][0].task_id, errors[index]) for index in sorted(errors)]
        first = listed[0][2]
        raise EnqueueFailed(
            f"{len(listed)} of {len(messages)} tasks were not accepted, the first: {type(first).__name__}: {first}",
            errors=listed,
            results=[None if index in errors else result for index, result in enumerate(results)],
        ) from first


def _windows(messages: Iterable[tuple[Outgoing, float]]) -> Iterator[list[tuple[int, Outgoing, float]]]:
    window: list[tuple[int, Outgoing, float]] = []
    size = 0
    for index, (message, timeout) in enumerate(messages):
        if window and (len(window) >= WINDOW or size + len(message.data) > WINDOW_BYTES):
            yield window
            window, size = [], 0
        window.append((index, message, timeout))
        size += len(message.data)
    if window:
        yield window


def _send_window(broker: Broker, window: Sequence[tuple[int, Outgoing, float]]) -> dict[int, Exception]:
    """The errors of those that were not accepted, by index."""
    answered: dict[int, Exception | None] = {}
    waiter = Waiter()
    lock = original("_thread", "allocate_lock")()  # callbacks come from any native thread

    def done(index: int, error: Exception | None) -> None:
        with lock:
            answered.setdefault(index, error)
            last = len(answered) == len(window)
        if last:
            waiter.set()

    def callback(index: int) -> Callable[[Any, Exception | None], None]:
        return lambda _, error: done(index, error)

    for index, message, timeout in window:
        broker.publish(message, callback(index), timeout=timeout)
    longest = max(timeout for _, _, timeout in window)
    if not waiter.wait(1.0):
        _await(broker, waiter, time.monotonic() + longest + GRACE - 1.0)
    errors: dict[int, Exception] = {}
    for index, message, timeout in window:
        error = answered.get(index, PublishUnknown(_no_answer(message, timeout), task_id=message.task_id))
        if error is not None:
            errors[index] = _own(error, message.task_id)
    return errors
