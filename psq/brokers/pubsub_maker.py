"""The administrative calls of Pub/Sub, one by one, at a pace that their small quota allows. All of them block."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from typing import Any

from psq.brokers import pubsub_wire as wire
from psq.brokers.base import QueueSpec
from psq.brokers.pubsub_names import Names
from psq.google.channel import Channel, Method
from psq.google.errors import CallError

__all__ = ["LABELS", "Maker"]

#: Most administrative calls a second of one process: their quota is small, and a fleet starts at once.
MAX_RATE = 50.0
#: Seconds for one call.
CALL_TIMEOUT = 10.0
#: Seconds that a broadcast queue's subscription lives without its member, and keeps messages.
MEMBER_TTL = 86400
#: Retention that every server accepts, seconds; the emulator refuses more.
SHORT_RETENTION = 7 * 86400
#: Labels on all that we make.
LABELS = {"psq": "queue"}
#: First lease of a subscription that a publisher makes, and its shortest on the service, seconds.
DEFAULT_ACK_DEADLINE = 10
#: First lease, and retention, of a subscription that keeps dead letters, seconds.
DEAD_DEADLINE, DEAD_RETENTION = 60, 31 * 86400


class Maker:
    """Makes, changes, deletes and gets topics and subscriptions. Safe from any thread and greenlet.

    All raise CallError.

    Args:
        channel: The service's channel.
        names: What things are called.
    """

    def __init__(self, channel: Channel, names: Names) -> None:
        self._channel, self._names = channel, names
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._retention_limit: int | None = None

    def create(self, queue: QueueSpec, deadline: float) -> bool:
        """Create a queue's subscription, and its topic where that is missing; False where it exists."""
        return self._create(
            self._names.subscription(queue),
            self._names.topic(queue.name),
            int(queue.ack_deadline) or DEFAULT_ACK_DEADLINE,
            MEMBER_TTL if queue.broadcast else int(queue.retention),
            MEMBER_TTL if queue.broadcast and not queue.lasting else None,
            deadline,
        )

    def create_dead(self, queue: str, deadline: float) -> bool:
        """Create what keeps a queue's dead letters; False where it exists."""
        name, topic = self._names.dead_subscription(queue), self._names.dead_topic(queue)
        return self._create(name, topic, DEAD_DEADLINE, DEAD_RETENTION, None, deadline)

    def create_topic(self, topic: str, deadline: float) -> bool:
        """Create a topic; False where it exists."""
        try:
            self._call(wire.CREATE_TOPIC, wire.Topic(name=topic, labels=LABELS), topic, deadline, "name")
        except CallError as error:
            if error.code == "ALREADY_EXISTS":
                return False
            raise
        return True

    def get(self, subscription: str, deadline: float) -> Any:
        """A subscription as it is."""
        request = wire.GetSubscriptionRequest(subscription=subscription)
        return self._call(wire.GET_SUBSCRIPTION, request, subscription, deadline)

    def get_topic(self, topic: str, deadline: float) -> Any:
        """A topic as it is."""
        return self._call(wire.GET_TOPIC, wire.GetTopicRequest(topic=topic), topic, deadline, "topic")

    def delete(self, subscription: str, deadline: float) -> None:
        """Delete a subscription."""
        request = wire.DeleteSubscriptionRequest(subscription=subscription)
        self._call(wire.DELETE_SUBSCRIPTION, request, subscription, deadline)

    def set_ack_deadline(self, subscription: str, seconds: int, deadline: float) -> None:
        """Change the first lease."""
        request = wire.UpdateSubscriptionRequest()
        request.subscription.name = subscription
        request.subscription.ack_deadline_seconds = seconds
        request.update_mask.paths.append("ack_deadline_seconds")
        self._call(wire.UPDATE_SUBSCRIPTION, request, subscription, deadline, "subscription.name")

    def allowed(self, resource: str, permissions: Sequence[str], deadline: float) -> set[str]:
        """Which of the permissions we have on a topic or subscription; none where that does not exist."""
        request = wire.TestIamPermissionsRequest(resource=resource, permissions=permissions)
        return set(self._call(wire.TEST_IAM_PERMISSIONS, request, resource, deadline, "resource").permissions)

    def _create(
        self, name: str, topic: str, ack_deadline: int, retention: int, ttl: int | None, deadline: float
    ) -> bool:
        topic_made = False
        while True:
            kept = retention if self._retention_limit is None else min(retention, self._retention_limit)
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
                    self.create_topic(topic, deadline)
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
