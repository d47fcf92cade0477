"""The services' limits, which the emulators hardly know. Requests are parsed here, and only here."""

from __future__ import annotations

from typing import Any

from google.cloud.datastore_v1.types import datastore
from google.pubsub_v1 import types

__all__ = ["Refused", "Retentions", "check", "parse"]

#: Bytes of any request.
MAX_REQUEST = 10 * 1024 * 1024
#: Of a publish: messages, bytes of a message (data and attributes), attributes, bytes of a name and of a value.
MAX_MESSAGES, MAX_MESSAGE = 1000, 10_000_000
MAX_ATTRIBUTES, MAX_NAME, MAX_VALUE = 100, 256, 1024
#: Of an ack or modack: ids, and bytes of the request.
MAX_ACK_IDS, MAX_ACK_BYTES = 1000, 512 * 1024
#: Of a modack and of a subscription, seconds.
MAX_ACK_DEADLINE, MIN_RETENTION, MAX_RETENTION = 600, 600, 31 * 86400
#: The emulator refuses a longer retention, seconds.
EMULATORS_RETENTION = 7 * 86400
#: Of a commit: mutations; of an entity: bytes, bytes of an indexed value; of a look-up: keys.
MAX_MUTATIONS, MAX_ENTITY, MAX_INDEXED, MAX_KEYS = 500, 1024 * 1024 - 4, 1500, 1000


class Refused(Exception):
    """What the service answers instead.

    Attributes:
        code: gRPC's name of the status.
        details: The service's text.
    """

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code, self.details = code, details


def _raw(wrapper: Any) -> Any:
    return type(wrapper.pb(wrapper()))


PARSED: dict[str, Any] = {
    "Publish": types.PublishRequest.pb(),
    "Pull": types.PullRequest.pb(),
    "Acknowledge": types.AcknowledgeRequest.pb(),
    "ModifyAckDeadline": types.ModifyAckDeadlineRequest.pb(),
    "CreateSubscription": types.Subscription.pb(),
    "UpdateSubscription": types.UpdateSubscriptionRequest.pb(),
    "Commit": _raw(datastore.CommitRequest),
    "Lookup": _raw(datastore.LookupRequest),
}


def parse(name: str, request: bytes) -> Any:
    """The request's message where the front looks into it; else None."""
    message = PARSED.get(name)
    return None if message is None else message.FromString(request)


def check(name: str, request: Any, size: int, shortest_ack_deadline: int) -> None:
    """Refuse what the service refuses.

    Args:
        name: Of the method.
        request: As `parse` gives it.
        size: Bytes of the request.
        shortest_ack_deadline: Of a subscription, seconds: 10 on the service.

    Raises:
        Refused: It is over a limit.
    """
    if size > MAX_REQUEST:
        raise _invalid(f"Request payload size exceeds the limit: {MAX_REQUEST} bytes.")
    checker = _CHECKS.get(name)
    if checker is not None:
        checker(request, size, shortest_ack_deadline)


class Retentions:
    """What subscriptions keep by the front's word: 31 days are taken as by the service, the emulator is told 7."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}

    def request(self, name: str, parsed: Any, data: bytes) -> bytes:
        """The request for the emulator."""
        if name not in ("CreateSubscription", "UpdateSubscription"):
            return data
        subscription = parsed if name == "CreateSubscription" else parsed.subscription
        if not subscription.HasField("message_retention_duration"):
            return data
        kept = subscription.message_retention_duration.seconds
        self._told[subscription.name] = kept
        subscription.message_retention_duration.seconds = min(kept, EMULATORS_RETENTION)
        return bytes(parsed.SerializeToString())

    def response(self, name: str, data: bytes) -> bytes:
        """The emulator's answer as the service's."""
        if name not in ("CreateSubscription", "UpdateSubscription", "GetSubscription"):
            return data
        subscription = PARSED["CreateSubscription"].FromString(data)
        kept = self._told.get(subscription.name)
        if kept is None:
            return data
        subscription.message_retention_duration.seconds = kept
        return bytes(subscription.SerializeToString())


def _invalid(details: str) -> Refused:
    return Refused("INVALID_ARGUMENT", details)


def _publish(request: Any, size: int, shortest: int) -> None:
    if not 0 < len(request.messages) <= MAX_MESSAGES:
        raise _invalid(f"The value for message_count is {len(request.messages)}; it must be from 1 to {MAX_MESSAGES}.")
    for message in request.messages:
        names = message.attributes
        if not message.data and not names:
            raise _invalid("One or more messages in the publish request is empty.")
        if len(names) > MAX_ATTRIBUTES:
            raise _invalid(f"A message has {len(names)} attributes; at most {MAX_ATTRIBUTES} are allowed.")
        total = len(message.data)
        for name, value in names.items():
            bytes_of_name, bytes_of_value = len(name.encode()), len(value.encode())
            if not name or bytes_of_name > MAX_NAME or bytes_of_value > MAX_VALUE:
                raise _invalid(f"An attribute key or value is too large: {name[:40]!r}.")
            total += bytes_of_name + bytes_of_value
        if total > MAX_MESSAGE:
            raise _invalid(f"The value for message is too large: {total} bytes; at most {MAX_MESSAGE} are allowed.")


def _pull(request: Any, size: int, shortest: int) -> None:
    if request.max_messages <= 0:
        raise _invalid(f"Invalid value for max_messages: {request.max_messages}; it must be greater than 0.")


def _acks(request: Any, size: int, shortest: int) -> None:
    if size > MAX_ACK_BYTES:
        raise _invalid(f"Request payload size exceeds the limit: {MAX_ACK_BYTES} bytes.")
    if not 0 < len(request.ack_ids) <= MAX_ACK_IDS:
        raise _invalid(f"{len(request.ack_ids)} ack IDs were given; there must be from 1 to {MAX_ACK_IDS}.")


def _modify(request: Any, size: int, shortest: int) -> None:
    _acks(request, size, shortest)
    if not 0 <= request.ack_deadline_seconds <= MAX_ACK_DEADLINE:
        raise _invalid(f"Invalid ack deadline: {request.ack_deadline_seconds}; from 0 to {MAX_ACK_DEADLINE} seconds.")


def _subscription(request: Any, size: int, shortest: int) -> None:
    seconds = request.ack_deadline_seconds
    if seconds and not shortest <= seconds <= MAX_ACK_DEADLINE:
        raise _invalid(f"Invalid ack deadline: {seconds}; it must be from {shortest} to {MAX_ACK_DEADLINE} seconds.")
    if request.HasField("message_retention_duration"):
        kept = request.message_retention_duration.seconds
        if not MIN_RETENTION <= kept <= MAX_RETENTION:
            raise _invalid(f"Invalid message retention duration: {kept} s; from 10 minutes to 31 days.")
        if request.HasField("expiration_policy"):
            ttl = request.expiration_policy.ttl.seconds
            if ttl and ttl < max(86400, kept):
                raise _invalid(f"Invalid expiration policy: {ttl} s; at least a day, and the message retention.")


def _update(request: Any, size: int, shortest: int) -> None:
    _subscription(request.subscription, size, shortest)


def _commit(request: Any, size: int, shortest: int) -> None:
    if len(request.mutations) > MAX_MUTATIONS:
        raise _invalid("cannot write more than 500 entities in a single call")
    seen: set[bytes] = set()
    for mutation in request.mutations:
        kind = mutation.WhichOneof("operation")
        if kind is None:
            raise _invalid("mutation has no operation")
        entity = None if kind == "delete" else getattr(mutation, kind)
        key = mutation.delete if entity is None else entity.key
        if key.path and key.path[-1].WhichOneof("id_type"):
            name = key.SerializeToString(deterministic=True)
            if name in seen and request.mode == 2:  # NON_TRANSACTIONAL
                raise _invalid(
                    "A non-transactional commit may not contain multiple mutations affecting the same entity."
                )
            seen.add(name)
        if entity is not None:
            _entity(entity)


def _entity(entity: Any) -> None:
    if entity.ByteSize() > MAX_ENTITY:
        raise _invalid("The value of an entity is too big: it is over 1048572 bytes.")
    for name, value in entity.properties.items():
        parts = value.array_value.values if value.WhichOneof("value_type") == "array_value" else [value]
        for part in parts:
            if part.exclude_from_indexes or value.exclude_from_indexes:
                continue
            kind = part.WhichOneof("value_type")
            length = len(part.string_value.encode()) if kind == "string_value" else len(part.blob_value)
            if length > MAX_INDEXED:
                raise _invalid(f'The value of property "{name}" is longer than 1500 bytes.')


def _lookup(request: Any, size: int, shortest: int) -> None:
    if len(request.keys) > MAX_KEYS:
        raise _invalid("cannot get more than 1000 keys in a single call")


_CHECKS = {
    "Publish": _publish,
    "Pull": _pull,
    "Acknowledge": _acks,
    "ModifyAckDeadline": _modify,
    "CreateSubscription": _subscription,
    "UpdateSubscription": _update,
    "Commit": _commit,
    "Lookup": _lookup,
}
