"""Publishing: group commit per topic, after making sure that a subscription keeps what is published."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from psq.brokers import pubsub_wire as wire
from psq.brokers.base import Outgoing, QueueSpec
from psq.brokers.pubsub_admin import Admin
from psq.brokers.pubsub_names import Names
from psq.brokers.pubsub_permissions import PUBLISH
from psq.concurrency import call_later
from psq.errors import MessageTooLarge, PsqError
from psq.google.channel import Channel, Method
from psq.google.errors import CallError, is_transient, publish_error
from psq.google.protobuf import varint
from psq.group_commit import Done, Finish, GroupCommit

__all__ = ["MAX_MESSAGE_BYTES", "MEMBER_ATTRIBUTE", "Publisher"]

#: Limits of one publish, and of one message with its attributes (Pub/Sub's documentation).
MAX_MESSAGES, MAX_MESSAGE_BYTES = 1000, 10_000_000
#: Bytes of one publish. The messages' lengths and tags and the topic's name stay below the difference.
MAX_BYTES = 10_000_000 - 16_000
MAX_ATTRIBUTES, MAX_ATTRIBUTE_NAME, MAX_ATTRIBUTE_VALUE = 100, 256, 1024
#: A repetition that would have less than this part of the timeout left is not made.
LAST_PART = 0.05
#: On a message for one member of a broadcast queue alone (a retry, a strike): the others ack it unseen.
MEMBER_ATTRIBUTE = "psq-member"


#: The answer has the messages' ids, which nobody needs.
PUBLISH_BYTES = Method(wire.PUBLISH.path)


class _Item:
    """A message on its way, as it stands in the request."""

    __slots__ = ("data", "deadline", "error", "maybe_sent", "timeout")

    def __init__(self, data: bytes, timeout: float) -> None:
        self.data, self.timeout = data, timeout
        self.deadline = time.monotonic() + timeout
        self.maybe_sent = False
        self.error: Exception | None = None


class _Topic:
    """What is published to one topic.

    Attributes:
        group: The group commit.
        ready: The topic and its subscription are there, or a deployer's business.
        missing: It was not found when published to: look again, more closely.
    """

    def __init__(self, publisher: Publisher, queue: QueueSpec, topic: str, ensure: Callable[[float], None]) -> None:
        self.queue, self.topic, self.ready, self.missing = queue, topic, False, False
        self.metadata = wire.routing("topic", topic)
        self._head: bytes = wire.PublishRequest(topic=topic).SerializeToString()
        self._publisher, self._ensure = publisher, ensure
        self._lock = threading.Lock()
        self._waiting: list[Callable[[Exception | None], None]] = []
        self.group: GroupCommit[_Item] = GroupCommit(
            self._start,
            max_items=MAX_MESSAGES,
            max_bytes=MAX_BYTES,
            transient=is_transient,
        )

    def _start(self, items: Sequence[_Item], finish: Finish) -> None:
        if self.ready:
            self._send(items, finish)
            return

        def ensured(error: Exception | None) -> None:
            if error is None:
                self._send(items, finish)
            elif isinstance(error, CallError) and error.transient:
                self._failed(items, error, finish)
            else:  # the same for all of them: nothing to bisect
                finish([error] * len(items))

        with self._lock:
            self._waiting.append(ensured)
            if len(self._waiting) > 1:
                return
        # Its calls block, and it happens once a process and topic: in a thread, or a greenlet.
        timeout = max(item.deadline for item in items) - time.monotonic()
        call_later(0.0, lambda: self._make_ready(timeout))

    def _make_ready(self, timeout: float) -> None:
        error: Exception | None = None
        try:
            self._ensure(max(0.1, timeout))
            self.ready, self.missing = True, False
        except Exception as caught:
            error = caught
            if not is_transient(error):
                self.missing = False  # told; the next publish begins anew, for somebody may have made it meanwhile
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for ensured in waiting:
            ensured(error)

    def _send(self, items: Sequence[_Item], finish: Finish) -> None:
        now = time.monotonic()
        results: list[Any] = [None] * len(items)
        live: list[_Item] = []
        for index, item in enumerate(items):
            left = item.deadline - now
            if left <= 0 or (item.error is not None and left < item.timeout * LAST_PART):
                results[index] = item.error or CallError("DEADLINE_EXCEEDED", "no time left", sent=False)
            else:
                live.append(item)
        if not live:
            finish(results)
            return
        request = b"".join([self._head, *[item.data for item in live]])
        timeout = min(item.deadline for item in live) - now

        def done(response: Any, error: CallError | None) -> None:
            if error is None:
                finish(results)
            elif error.code == "NOT_FOUND" and not self.missing:
                self.ready, self.missing = False, True
                self._failed(items, CallError(error.code, error.details, transient=True, sent=False), finish)
            elif error.transient:
                self._failed(items, error, finish)
            elif error.code == "INVALID_ARGUMENT":
                finish(error)  # bisected: others may be good
            elif error.code == "PERMISSION_DENIED":
                finish([self._publisher.denied(error)] * len(items))
            else:
                finish([error] * len(items))

        self._publisher.requests += 1
        self._publisher.channel.start(PUBLISH_BYTES, request, timeout, done, metadata=self.metadata)

    @staticmethod
    def _failed(items: Sequence[_Item], error: CallError, finish: Finish) -> None:
        for item in items:
            item.error = error
            item.maybe_sent = item.maybe_sent or error.sent
        finish(error)


class Publisher:
    """Publishes to all topics of a broker. Safe from any thread and greenlet; nothing blocks.

    Args:
        channel: The service's channel.
        names: What things are called.
        admin: Makes topics and subscriptions.
        post: ``post(function, *args)`` runs a callback.

    Attributes:
        requests: Publish requests so far.
        messages: Messages accepted so far.
    """

    def __init__(self, channel: Channel, names: Names, admin: Admin, post: Callable[..., None]) -> None:
        self.channel = channel
        self._names, self._admin, self._post = names, admin, post
        self._lock = threading.Lock()
        self._topics: dict[str, _Topic] = {}
        self._in_use: set[_Topic] = set()  # of a thousand topics few are published to
        self.requests = self.messages = 0

    def publish(self, out: Outgoing, done: Done, timeout: float) -> None:
        """See `Broker.publish`."""
        attributes: Mapping[str, str] = out.attributes
        if out.queue.broadcast and out.queue.member:
            attributes = {**attributes, MEMBER_ATTRIBUTE: out.queue.member}
        try:
            topic = self._topics.get(out.queue.name) or self._topic(out.queue)
            framed = _framed(out.data, attributes)
        except PsqError as error:
            self._post(done, None, error)
            return
        self._add(topic, framed, out.task_id, done, timeout)

    def publish_dead(self, queue: str, data: bytes, attributes: Mapping[str, str], done: Done, timeout: float) -> None:
        """Publish to the topic that keeps a queue's dead letters."""
        key = f"{queue}-dead"  # no queue can be called so
        topic = self._topics.get(key)
        if topic is None:

            def ensure(timeout: float) -> None:
                self._admin.ensure_dead(queue, timeout, gone=made.missing)

            with self._lock:
                topic = self._topics.get(key)
                if topic is None:
                    made = topic = _Topic(self, QueueSpec(key), self._names.dead_topic(queue), ensure)
                    self._topics[key] = topic
        try:
            framed = _framed(data, attributes)
        except PsqError as error:
            self._post(done, None, error)
            return
        self._add(topic, framed, "", done, timeout)

    def _topic(self, queue: QueueSpec) -> _Topic:
        self._names.check(queue.name)
        with self._lock:
            topic = self._topics.get(queue.name)
            if topic is None:
                spec = QueueSpec(queue.name, broadcast=queue.broadcast, ack_deadline=queue.ack_deadline)

                def ensure(timeout: float) -> None:
                    if made.missing:
                        self._admin.repair(spec, timeout)
                    else:
                        self._admin.ensure(spec, timeout)

                made = topic = self._topics[queue.name] = _Topic(self, spec, self._names.topic(queue.name), ensure)
        return topic

    def _add(self, topic: _Topic, framed: bytes, task_id: str, done: Done, timeout: float) -> None:
        item = _Item(framed, timeout)

        def ended(result: Any, error: Exception | None) -> None:
            if error is None and isinstance(result, Exception):
                error = result
            if error is None:
                self.messages += 1
                self._post(done, None, None)
                return
            what = f"publishing to {topic.topic}"
            translated = publish_error(error, what, task_id=task_id or None, maybe_sent=item.maybe_sent)
            translated.__cause__ = error
            self._post(done, None, translated)

        topic.group.add(item, len(framed), ended, deadline=item.deadline)
        self._in_use.add(topic)  # after the line above, see `kick`

    def denied(self, error: CallError) -> CallError:
        """With what would allow it."""
        return CallError(error.code, f"{error.details}: {self._admin.missing(PUBLISH)}")

    def ready(self, queue: QueueSpec) -> None:
        """A consumer has made sure of this queue already."""
        self._topic(queue).ready = True

    def kick(self) -> None:
        """Start requests that a stuck one holds back."""
        for topic in list(self._in_use):
            self._in_use.discard(topic)
            if not topic.group.idle():  # looked at after the line above: who adds to it meanwhile notes it again
                self._in_use.add(topic)
                topic.group.kick()

    def idle(self) -> bool:
        """True when nothing waits and nothing is in flight."""
        return all(topic.group.idle() for topic in list(self._topics.values()))


def _framed(data: bytes, attributes: Mapping[str, str]) -> bytes:
    """A message as it stands in a PublishRequest: requests are joined from these, which copies once.

    Raises:
        MessageTooLarge: It, or an attribute, is over the limit.
    """
    if len(attributes) > MAX_ATTRIBUTES:
        raise MessageTooLarge(
            f"{len(attributes)} attributes; Pub/Sub takes {MAX_ATTRIBUTES}", size=len(attributes), limit=MAX_ATTRIBUTES
        )
    for name, value in attributes.items():
        if len(name) > MAX_ATTRIBUTE_NAME // 4:
            _check_length("name", name, name, MAX_ATTRIBUTE_NAME)
        if len(value) > MAX_ATTRIBUTE_VALUE // 4:
            _check_length("value", name, value, MAX_ATTRIBUTE_VALUE)
    message: bytes = wire.PubsubMessage(data=data, attributes=attributes).SerializeToString()
    size = len(message)
    if size > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(
            f"the message has {size:,} bytes; Pub/Sub takes {MAX_MESSAGE_BYTES:,}", size=size, limit=MAX_MESSAGE_BYTES
        )
    return b"\x12" + varint(size) + message  # field 2, a message


def _check_length(what: str, name: str, text: str, limit: int) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > limit:
        raise MessageTooLarge(
            f"the {what} of the attribute {name[:40]!r} has {size} bytes; Pub/Sub takes {limit}", size=size, limit=limit
        )
