"""Topics and subscriptions: made where they are missing, looked at where they exist. Everything here blocks."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Any

from psq.brokers import pubsub_wire as wire
from psq.brokers.base import QueueSpec
from psq.brokers.pubsub_advice import DELETED_TOPIC, differences, gcloud_create, gcloud_repair
from psq.brokers.pubsub_backlog import Backlog
from psq.brokers.pubsub_names import Names
from psq.errors import BrokerRefused
from psq.google.channel import Channel, Method
from psq.google.errors import CallError, broker_error

__all__ = ["Admin"]

#: Most administrative calls a second of one process: their quota is small, and a fleet starts at once.
MAX_RATE = 50.0
#: Seconds for one call.
CALL_TIMEOUT = 10.0
#: Seconds that a broadcast queue's subscription lives without its member.
MEMBER_TTL = 86400
#: Retention that every server accepts, seconds; the emulator refuses more.
SHORT_RETENTION = 7 * 86400
#: Labels on all that we make.
LABELS = {"psq": "queue"}
#: Longest random pause before a subscription of a deleted topic is made anew, seconds.
REPAIR_JITTER = 1.0
#: First lease of a subscription that a publisher makes, and its shortest on the service, seconds.
DEFAULT_ACK_DEADLINE = 10

log = logging.getLogger("psq")


class Admin:
    """Makes sure that topics and subscriptions exist. Safe from any thread and greenlet; all methods block.

    Args:
        channel: The service's channel.
        names: What things are called.
    """

    def __init__(self, channel: Channel, names: Names) -> None:
        self._channel, self._names = channel, names
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._retention_limit: int | None = None
        self._warned: set[str] = set()
        self._deadlines: dict[str, float] = {}  # subscription -> ack deadline that it has

    def ack_deadline(self, queue: QueueSpec) -> float:
        """Seconds of the first lease: what the subscription has, as far as we know."""
        return self._deadlines.get(self._names.subscription(queue), queue.ack_deadline)

    def ensure(self, queue: QueueSpec, timeout: float) -> None:
        """What a publisher needs: a topic, and a subscription, so that nothing is swallowed.

        A broadcast queue's subscriptions are made by its members. Where we may
        not create anything, a deployer did: one warning, and on.

        Raises:
            CallError: Transient ones alone: try again.
            BrokerRefused: It can't be made.
        """
        deadline = time.monotonic() + timeout
        topic = self._names.topic(queue.name)
        try:
            if queue.broadcast:
                self._create_topic(topic, deadline)
            else:
                self._create_subscription(queue, topic, deadline)
        except CallError as error:
            if error.transient:
                raise
            if error.code != "PERMISSION_DENIED":
                raise broker_error(error, f"making the queue {queue.name}") from error
            self._warn_denied(queue, error)

    def declare(self, queue: QueueSpec, timeout: float = 60.0) -> list[str]:
        """What a consumer needs, with a look at what exists. See `Broker.declare`."""
        deadline = time.monotonic() + timeout
        topic = self._names.topic(queue.name)
        subscription = self._names.subscription(queue)
        try:
            try:
                made = self._create_subscription(queue, topic, deadline)
            except CallError as error:
                if error.code != "PERMISSION_DENIED":
                    raise
                return self._look_only(queue, subscription, error, deadline)
            if made:
                self._deadlines[subscription] = queue.ack_deadline
                return []
            found = self.look(queue, deadline)
            if found is None:
                return []
            if found.topic == DELETED_TOPIC:
                self._repair(queue, topic, subscription, deadline)
                return [f"its topic had been deleted: {subscription} was made anew"]
            return self._check(queue, topic, found, deadline)
        except CallError as error:
            raise broker_error(error, f"declaring the queue {queue.name}") from error

    def look(self, queue: QueueSpec, deadline: float) -> Any:
        """The subscription as it is, or None where we may not look.

        Raises:
            CallError: It is not there, or can't be reached.
        """
        name = self._names.subscription(queue)
        try:
            found = self._call(wire.GET_SUBSCRIPTION, wire.GetSubscriptionRequest(subscription=name), name, deadline)
        except CallError as error:
            if error.code == "PERMISSION_DENIED":
                return None
            raise
        if found.ack_deadline_seconds:
            self._deadlines[name] = float(found.ack_deadline_seconds)
        return found

    def ensure_dead(self, queue: str, timeout: float) -> None:
        """The topic and subscription that keep a queue's dead letters."""
        deadline = time.monotonic() + timeout
        name, topic = self._names.dead_subscription(queue), self._names.dead_topic(queue)
        try:
            self._create(name, topic, 60, 31 * 86400, None, deadline)
        except CallError as error:
            if error.code != "PERMISSION_DENIED":
                raise
            self._warn(f"{topic} can't be made ({error}): somebody else must have, with a subscription {name}")

    def delete_member(self, queue: QueueSpec, timeout: float = CALL_TIMEOUT) -> None:
        """Delete a broadcast member's subscription; that it is not there is no error."""
        name = self._names.subscription(queue)
        request = wire.DeleteSubscriptionRequest(subscription=name)
        try:
            self._call(wire.DELETE_SUBSCRIPTION, request, name, time.monotonic() + timeout)
        except CallError as error:
            if error.code != "NOT_FOUND":
                raise broker_error(error, f"deleting {name}") from error

    def repair(self, queue: QueueSpec, timeout: float) -> bool:
        """Look whether a queue's topic was deleted below it, and make it anew; True where something was made.

        Called when a publish or a pull was told NOT_FOUND.

        Raises:
            CallError, BrokerRefused: As `ensure`.
        """
        deadline = time.monotonic() + timeout
        topic = self._names.topic(queue.name)
        if queue.broadcast and not queue.member:
            return self._create_topic(topic, deadline)
        try:
            if self._create_subscription(queue, topic, deadline):
                return True
            found = self.look(queue, deadline)
        except CallError as error:
            if error.code != "PERMISSION_DENIED":
                raise
            raise BrokerRefused(
                f"{topic} or its subscription is missing, and we may not make it: {gcloud_create(self._names, queue)}"
            ) from error
        if found is not None and found.topic == DELETED_TOPIC:
            self._repair(queue, topic, found.name, deadline)
            return True
        return False

    # the steps

    def _create_subscription(self, queue: QueueSpec, topic: str, deadline: float) -> bool:
        return self._create(
            self._names.subscription(queue),
            topic,
            int(queue.ack_deadline) or DEFAULT_ACK_DEADLINE,
            int(queue.retention),
            MEMBER_TTL if queue.broadcast else None,
            deadline,
        )

    def _create(
        self, name: str, topic: str, ack_deadline: int, retention: int, ttl: int | None, deadline: float
    ) -> bool:
        """Create a subscription, and its topic where that is missing; False where it exists."""
        topic_made = False
        while True:
            kept = retention if self._retention_limit is None else min(retention, self._retention_limit)
            if ttl is not None:
                kept = min(kept, ttl)  # a subscription may not keep messages for longer than it lives
            request = wire.Subscription(name=name, topic=topic, ack_deadline_seconds=ack_deadline, labels=LABELS)
            request.message_retention_duration.seconds = kept
            if ttl is None:
                request.expiration_policy.SetInParent()  # never
            else:
                request.expiration_policy.ttl.seconds = ttl
            try:
                self._call(wire.CREATE_SUBSCRIPTION, request, name, deadline)
            except CallError as error:
                if error.code == "ALREADY_EXISTS":
                    return False
                if error.code == "NOT_FOUND" and not topic_made:
                    self._create_topic(topic, deadline)
                    topic_made = True
                elif error.code == "NOT_FOUND":
                    # the new topic is not everywhere yet, or was deleted again
                    raise CallError("UNAVAILABLE", error.details, sent=False) from error
                elif (
                    error.code == "INVALID_ARGUMENT" and "retention" in error.details.lower() and kept > SHORT_RETENTION
                ):
                    self._retention_limit = SHORT_RETENTION
                else:
                    raise
            else:
                return True

    def _create_topic(self, topic: str, deadline: float) -> bool:
        try:
            self._call(wire.CREATE_TOPIC, wire.Topic(name=topic, labels=LABELS), topic, deadline, "name")
        except CallError as error:
            if error.code == "ALREADY_EXISTS":
                return False
            raise
        return True

    def _look_only(self, queue: QueueSpec, subscription: str, denied: CallError, deadline: float) -> list[str]:
        """We may not create: then it must be there."""
        try:
            found = self.look(queue, deadline)
        except CallError as error:
            if error.code == "NOT_FOUND":
                raise BrokerRefused(
                    f"{subscription} does not exist, and we may not make it ({denied.details}): "
                    f"{gcloud_create(self._names, queue)}"
                ) from error
            raise
        if found is None:
            return [f"{subscription} can't be looked at ({denied.details}); taken for right"]
        if found.topic == DELETED_TOPIC:
            raise BrokerRefused(
                f"the topic of {subscription} was deleted: it never gets a message again. "
                f"Make it anew: {gcloud_repair(self._names, queue)}"
            )
        return self._check(queue, self._names.topic(queue.name), found, deadline)

    def _check(self, queue: QueueSpec, topic: str, found: Any, deadline: float) -> list[str]:
        errors, warnings = differences(queue, topic, found)
        if errors:
            raise BrokerRefused(f"{found.name} can't be used: " + "; ".join(errors))
        if found.ack_deadline_seconds != int(queue.ack_deadline):
            warnings += self._set_ack_deadline(queue, found, deadline)
        return warnings

    def _set_ack_deadline(self, queue: QueueSpec, found: Any, deadline: float) -> list[str]:
        """Ours, made by a publisher with another ack deadline: ours to change. Others' stay as they are."""
        has = found.ack_deadline_seconds
        if found.labels.get("psq") == LABELS["psq"]:
            request = wire.UpdateSubscriptionRequest()
            request.subscription.name = found.name
            request.subscription.ack_deadline_seconds = int(queue.ack_deadline)
            request.update_mask.paths.append("ack_deadline_seconds")
            try:
                self._call(wire.UPDATE_SUBSCRIPTION, request, found.name, deadline, "subscription.name")
            except CallError as error:
                if error.transient:
                    raise
            else:
                self._deadlines[found.name] = queue.ack_deadline
                return []
        return [f"its ack deadline is {has} s, not {queue.ack_deadline:g} s: {has} s is used for the first lease"]

    def _repair(self, queue: QueueSpec, topic: str, name: str, deadline: float) -> None:
        """A subscription of a deleted topic: made anew on a new topic, with what it still held.

        What it held is in this process's memory for a moment: published before the new subscription exists it would
        be swallowed, and the old one can't be joined to a new topic.
        """
        time.sleep(random.uniform(0.0, REPAIR_JITTER))  # several daemons notice at the same time
        found = self.look(queue, deadline)
        if found is None or found.topic != DELETED_TOPIC:
            return  # another was faster
        log.warning("the topic of %s was deleted; both are made anew", name)
        try:
            self._create_topic(topic, deadline)
            backlog = list(Backlog(self._channel, name).messages())
            request = wire.DeleteSubscriptionRequest(subscription=name)
            found = self.look(queue, deadline)
            if found is None or found.topic == DELETED_TOPIC:
                self._call(wire.DELETE_SUBSCRIPTION, request, name, deadline)
            self._create_subscription(queue, topic, deadline)
        except CallError as error:
            if error.code != "PERMISSION_DENIED":
                raise
            raise BrokerRefused(
                f"the topic of {name} was deleted, and we may not make it anew ({error.details}): "
                f"{gcloud_repair(self._names, queue)}"
            ) from error
        self._deadlines[name] = queue.ack_deadline
        self._publish_again([received.message for received in backlog], topic, deadline)

    def _publish_again(self, messages: list[Any], topic: str, deadline: float) -> None:
        if messages:
            log.warning("%d tasks of the deleted topic %s are published again", len(messages), topic)
        while messages:
            batch, size = [messages.pop()], 0
            while messages and len(batch) < 1000 and size + messages[-1].ByteSize() < 5_000_000:
                size += messages[-1].ByteSize()
                batch.append(messages.pop())
            copies = [wire.PubsubMessage(data=one.data, attributes=one.attributes) for one in batch]
            request = wire.PublishRequest(topic=topic, messages=copies)
            self._insist(wire.PUBLISH, request, topic, "topic")

    def _insist(self, method: Method, request: Any, name: str, field: str) -> None:
        """Call until it works: what is sent here exists nowhere else any more."""
        pause = 0.05
        while True:
            try:
                self._channel.call(method, request, CALL_TIMEOUT, metadata=wire.routing(field, name))
            except CallError as error:
                if not error.transient and error.code != "NOT_FOUND":
                    log.error("%d tasks of a deleted topic are lost: %s", len(request.messages), error)
                    return
                time.sleep(pause)
                pause = min(5.0, pause * 2)
            else:
                return

    # calls

    def _call(self, method: Method, request: Any, name: str, deadline: float, field: str = "subscription") -> Any:
        self._pace()
        timeout = max(0.05, min(CALL_TIMEOUT, deadline - time.monotonic()))
        return self._channel.call(method, request, timeout, metadata=wire.routing(field, name))

    def _pace(self) -> None:
        """Wait for this call's turn: at most `MAX_RATE` a second, the more evenly the more there are."""
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next_at)
            self._next_at = at + random.uniform(0.5, 1.5) / MAX_RATE
        if at > now:
            time.sleep(at - now)

    def _warn_denied(self, queue: QueueSpec, error: CallError) -> None:
        self._warn(
            f"topics and subscriptions can't be made here ({error.details}): a deployer must have made those of "
            f"{queue.name}, and of other queues: {gcloud_create(self._names, queue)}",
            once="denied",
        )

    def _warn(self, text: str, once: str = "") -> None:
        if (once or text) not in self._warned:
            self._warned.add(once or text)
            log.warning("%s", text)
