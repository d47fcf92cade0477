"""The wire format: a JSON document with a version, and attributes for routing and people.

docs/wire-format.md says it in prose. The document is the truth; attributes
repeat what routing and people need. Old versions stay readable.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from os import urandom
from typing import Any

from psq.errors import ConfigError, MessageInvalid, MessageTooNew
from psq.retry import RetryPolicy
from psq.serializers import TAG, decode_json, encode_json

__all__ = ["WIRE_VERSION", "Message", "add_strike", "attributes", "check_id", "decode", "encode", "new_id"]

#: The version that this psq writes, and the newest that it reads.
WIRE_VERSION = 1


@dataclass(slots=True)
class Message:
    """A task on the wire.

    `args` and `kwargs` are *tagged JSON* (see `psq.serializers`): the values as
    they stand in the document, not yet the function's arguments. So a message
    can be read, retried and kept without importing what its arguments name.

    Attributes:
        id: Task id, the same over all attempts; see `check_id`.
        function: ``module:qualname``.
        args: Positional arguments, tagged.
        kwargs: Keyword arguments, tagged.
        queue: Name of the queue it was sent to.
        enqueued_at: Unix time of the first enqueue, seconds.
        due_at: Unix time before which it must not start, or None.
        attempt: 1 for the first; grows when a retry is published.
        run: 1; grows when a dead letter is requeued.
        retries: Retries allowed after an exception; None: the queue's own setting.
        retry: Keys of a RetryPolicy that differ from the queue's, or None.
        time_limit: Seconds, or None: the queue's own.
        soft_time_limit: Seconds, or None: the queue's own.
        reply: Identity of the storage where the sender reads results (`Storage.identity`), "" for none.
        strikes: One record for each start that never ended because its worker died:
            ``{"signal": "SIGKILL", "host": …, "at": unix time}``, with ``"last": True`` if no other started later.
    """

    id: str
    function: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    queue: str = "default"
    enqueued_at: float = field(default_factory=time.time)
    due_at: float | None = None
    attempt: int = 1
    run: int = 1
    retries: int | None = None
    retry: Mapping[str, Any] | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    reply: str = ""
    strikes: Sequence[Mapping[str, Any]] = ()


# 1 to 200 printable ASCII characters but space, "/" and ":"; not __…__, which Datastore keeps for itself.
_is_id = re.compile(r"(?!__.*__\Z)[!-.0-9;-~]{1,200}\Z").match

#: Most of a count (attempt, run, retries) and of a time in seconds: what every storage can hold.
_MOST_COUNT, _MOST_SECONDS = 2**31 - 1, 1e11


def check_id(task_id: str) -> str:
    """A task id, if it is one: 1 to 200 printable ASCII characters without space, ``:`` and ``/``, not ``__…__``.

    Raises:
        ConfigError: It is not; the text says what is valid.
    """
    if not isinstance(task_id, str) or not _is_id(task_id):
        raise ConfigError(
            f"{str(task_id)[:210]!r} is no task id: write 1 to 200 printable ASCII characters without space, "
            "':' and '/', not of the form '__…__'"
        )
    return str(task_id)


def new_id() -> str:
    """A new task id: 32 hex digits, random; safe after a fork."""
    return urandom(16).hex()


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MOST_COUNT


def _is_retries(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST_COUNT


def _is_seconds(value: Any) -> bool:  # 1e999 is read as infinity, and true is an int
    return type(value) in (int, float) and 0 <= value <= _MOST_SECONDS


def _is_retry(value: Any) -> bool:
    if type(value) is not dict:
        return False
    try:
        RetryPolicy.from_document(value)
    except ConfigError:
        return False
    return True


def _is_strikes(value: Any) -> bool:
    return type(value) is list and all(type(item) is dict for item in value)


# Written only where they say something, so that the common message stays small.
_OPTIONAL: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("due_at", _is_seconds),
    ("attempt", _is_count),
    ("run", _is_count),
    ("retries", _is_retries),
    ("retry", _is_retry),
    ("time_limit", _is_seconds),
    ("soft_time_limit", _is_seconds),
    ("reply", lambda value: type(value) is str),
    ("strikes", _is_strikes),
)
#: Keys that every document has.
_REQUIRED = 7


def encode(message: Message) -> bytes:
    """Write a message as its document, UTF-8. What `decode` has read is always writable again."""
    document: dict[str, Any] = {
        "v": WIRE_VERSION,
        "id": message.id,
        "function": message.function,
        "args": list(message.args),
        "kwargs": message.kwargs,
        "queue": message.queue,
        "enqueued_at": message.enqueued_at,
    }
    # One by one: this is the hot path of enqueue, and a loop over names costs as much as the JSON
    if message.due_at is not None:
        document["due_at"] = message.due_at
    if message.attempt != 1:
        document["attempt"] = message.attempt
    if message.run != 1:
        document["run"] = message.run
    if message.retries is not None:
        document["retries"] = message.retries
    if message.retry is not None:
        document["retry"] = message.retry
    if message.time_limit is not None:
        document["time_limit"] = message.time_limit
    if message.soft_time_limit is not None:
        document["soft_time_limit"] = message.soft_time_limit
    if message.reply:
        document["reply"] = message.reply
    if message.strikes:
        document["strikes"] = list(message.strikes)
    try:
        text = encode_json(document)
    except ValueError:  # 1e999 in a foreign document was read as infinity
        text = encode_json(_tag_infinite(document))
    return text.encode("utf-8", "surrogatepass")


def _tag_infinite(value: Any) -> Any:
    """The same JSON with floats that JSON can't say tagged, as `psq.serializers.dump` does."""
    if type(value) is float and not isfinite(value):
        return {TAG: "float", "v": repr(value)}
    if type(value) is list:
        return [_tag_infinite(item) for item in value]
    if type(value) is dict:
        return {key: _tag_infinite(item) for key, item in value.items()}
    return value


def attributes(message: Message) -> dict[str, str]:
    """The attributes that go beside the document: for routing, tracing and people."""
    return {"psq-v": str(WIRE_VERSION), "psq-id": message.id, "psq-function": message.function}


def decode(data: bytes) -> Message:
    """Read a document.

    Raises:
        MessageTooNew: Written by a newer psq; of its other keys only the id was looked at.
        MessageInvalid: Not a message of ours; the text says what is wrong. No other error leaves here.
    """
    try:
        document = decode_json(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError, AttributeError) as error:
        raise MessageInvalid(f"the payload is not a JSON document: {error}") from None
    if type(document) is not dict:
        raise MessageInvalid(f"the payload is a JSON {type(document).__name__}, not an object")
    version = document.get("v")
    if version != WIRE_VERSION or type(version) is not int:
        if type(version) is int and version > WIRE_VERSION:
            newer = MessageTooNew(f"wire version {version} is newer than {WIRE_VERSION}, which this psq reads")
            task_id = document.get("id")
            newer.task_id = task_id if type(task_id) is str and _is_id(task_id) else ""
            raise newer
        raise MessageInvalid(f"no wire version that we know: {str(version)[:40]!r}")
    try:
        message = Message(
            document["id"],
            document["function"],
            document["args"],
            document["kwargs"],
            document["queue"],
            document["enqueued_at"],
        )
    except KeyError as error:
        raise MessageInvalid(f"the key {error.args[0]!r} is missing") from None
    if type(message.id) is not str or not _is_id(message.id):
        raise MessageInvalid(f"{str(message.id)[:60]!r} is no task id")
    if (
        type(message.function) is not str
        or type(message.args) is not list
        or type(message.kwargs) is not dict
        or type(message.queue) is not str
        or not _is_seconds(message.enqueued_at)
    ):
        raise MessageInvalid("one of function, args, kwargs, queue, enqueued_at is not of its type")
    if len(document) > _REQUIRED:
        for name, is_valid in _OPTIONAL:
            value = document.get(name)
            if value is not None:
                if not is_valid(value):
                    raise MessageInvalid(f"the key {name!r} can't be {str(value)[:60]!r}")
                if value != []:  # an empty list of strikes is none, and is not written again
                    setattr(message, name, value)
    return message


def add_strike(data: bytes, *, signal: str, host: str, at: float, last: bool = False) -> bytes:
    """The same message with one more strike; used by the keeper.

    Args:
        data: The document.
        signal: What killed the worker, ``SIGKILL`` or ``exit 1``.
        host: The machine's name.
        at: Unix time of the death, seconds.
        last: It was the last task of its worker to start.

    Raises:
        MessageInvalid: Not a message of ours.
    """
    message = decode(data)
    strike: dict[str, Any] = {"signal": signal, "host": host, "at": at}
    if last:
        strike["last"] = True
    message.strikes = [*message.strikes, strike]
    return encode(message)
