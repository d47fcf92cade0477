"""The broker on Google Cloud Pub/Sub: the service, or its emulator.

The parts beside this file: names, admin (makes and looks at topics and
subscriptions), publisher and acks (group commit), receiver (pulls), watch
(subscriptions and the connection, while nothing comes), dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from psq.brokers.base import Broker, DeadLetters, Delivery, Outgoing, QueueSpec, Receiver
from psq.brokers.dispatcher import Dispatcher
from psq.brokers.pubsub_acks import Acks
from psq.brokers.pubsub_admin import Admin
from psq.brokers.pubsub_dead import PubSubDeadLetters
from psq.brokers.pubsub_names import AUTO, HOST, Names, Place, place_from, place_from_url
from psq.brokers.pubsub_publisher import MAX_MESSAGE_BYTES, Publisher
from psq.brokers.pubsub_receiver import PubSubReceiver, poll_for
from psq.brokers.pubsub_watch import Watch
from psq.fork import reset_after_fork
from psq.google.channel import Channel, Target, connections_for
from psq.google.errors import CallError, broker_error
from psq.group_commit import Done

__all__ = ["PubSubBroker", "from_url"]

#: OAuth scope of all that we do.
SCOPES = ("https://www.googleapis.com/auth/pubsub",)
#: Connections that a channel may open at least: they are opened when they are needed.
CONNECTIONS = 16
#: A tick that comes sooner after the last does nothing, seconds: one looks at a thousand queues.
TICKS_APART = 0.5
#: Seconds that `close` waits for what was handed over before.
CLOSE_TIMEOUT = 15.0


class PubSubBroker(Broker):
    """See `Broker`, and docs/pubsub.md for what is made and named how.

    Args:
        project: The project's id.
        endpoint: ``host[:port]`` (TLS) or ``http://host:port`` (an emulator); None:
            ``PUBSUB_EMULATOR_HOST`` where it is set, else the service.
        prefix: Put before the names of all topics and subscriptions.
        declare: ``auto``: topics and subscriptions are made where they are missing. ``check``: they are looked
            at, and nothing is made. ``never``: nothing is asked for before it is used.
        credentials: google-auth credentials; None: application default credentials.
        queues_hint: Queues that this process will receive from, for the number of
            connections and the length of a poll; see `expect_queues`.
        poll: Seconds of a long poll; None: by the number of queues.

    Raises:
        ConfigError: Project, endpoint, prefix or declare can't be right.
        MissingDependency: google-cloud-pubsub is not installed.
    """

    scheme = "pubsub"
    durable = True
    schedules = False
    reports_lost_leases = False
    max_message_bytes = MAX_MESSAGE_BYTES
    max_park = 600.0

    def __init__(
        self,
        project: str,
        *,
        endpoint: str | None = None,
        prefix: str = "",
        declare: str = AUTO,
        credentials: Any = None,
        queues_hint: int = 1,
        poll: float | None = None,
    ) -> None:
        self._place: Place = place_from(project, endpoint=endpoint, prefix=prefix, declare=declare)
        self._names = Names(project, prefix)
        self._credentials = credentials
        self._queues, self._poll = queues_hint, poll
        self._closed = False
        self._post = Dispatcher(lambda: self.dispatch).post
        self._make()
        reset_after_fork(self)

    def _make(self) -> None:
        place = self._place
        target = Target(place.address, place.secure, self._credentials, SCOPES, HOST)
        poll = self._poll or poll_for(self._queues)
        self.channel = Channel(
            target, connections=max(CONNECTIONS, connections_for(self._queues)), keepalive=max(30.0, 0.6 * poll)
        )
        self._admin = Admin(self.channel, self._names, place.declare)
        self._publisher = Publisher(self.channel, self._names, self._admin, self._post)
        self._acks = Acks(self.channel, self._post)
        self._watch = Watch(self.channel, self._admin)
        self._leaving: dict[str, QueueSpec] = {}  # members whose subscription goes when we close
        self._sources: dict[QueueSpec, str] = {}
        self._busy: set[PubSubReceiver] = set()
        self._ticked_at = 0.0

    @property
    def url(self) -> str:
        """See `Broker.url`."""
        return self._place.url

    @property
    def project(self) -> str:
        """The project's id."""
        return self._place.project

    def check_queue_name(self, name: str) -> None:
        """See `Broker.check_queue_name`."""
        self._names.check(name)

    def expect_queues(self, queues: int) -> None:
        """Say how many queues this process will receive from; otherwise they are counted as they come.

        Where that needs more connections than allowed so far, the channel is
        made anew: calls in flight are repeated, which strands what cancelled
        pulls had on their way for a lease. There is room for 1,000 from the start.
        """
        if queues > self._queues:
            self._queues = queues
            if connections_for(queues) > self.channel.connections:
                self.channel.grow(connections_for(2 * queues))

    def publish(self, message: Outgoing, done: Done, *, timeout: float = 10.0) -> None:
        """See `Broker.publish`. To a broadcast queue with a member: for that member alone."""
        self._publisher.publish(message, done, timeout)

    def declare(self, queue: QueueSpec) -> list[str]:
        """See `Broker.declare`."""
        self._names.check(queue.name)
        if queue.broadcast and not queue.member:
            return self._admin.topic_only(queue)
        warnings = self._admin.declare(queue)
        self._publisher.ready(queue)
        if queue.broadcast and queue.delete_on_close and self._place.declare == AUTO:
            self._leaving[self._names.subscription(queue)] = queue
        return warnings

    def declare_dead(self, queue: QueueSpec) -> None:
        """See `Broker.declare_dead`."""
        try:
            self._admin.ensure_dead(queue.name, 30.0)
        except CallError as error:
            raise broker_error(error, f"declaring the dead letters of {queue.name}") from error

    def lacks(self, queue: QueueSpec) -> list[str] | None:
        """See `Broker.lacks`."""
        return self._admin.lacks(queue)

    def source(self, queue: QueueSpec) -> str:
        """See `Broker.source`."""
        source = self._sources.get(queue)
        if source is None:
            source = self._sources[queue] = self._names.source(queue)
        return source

    def receiver(self, queue: QueueSpec, deliver: Callable[[list[Delivery]], None]) -> Receiver:
        """See `Broker.receiver`."""
        self.channel.polls = True
        receiver = PubSubReceiver(
            self.channel,
            queue,
            self._names.subscription(queue),
            deliver,
            self._post,
            lease=lambda: self._admin.ack_deadline(queue),
            poll=self._poll or poll_for(self._queues),
            drop=lambda delivery: self.ack(delivery, _nobody),
            gone=self._watch.mend,
            denied=self._watch.denied,
            doubtful=self._watch.probe,
            busy=self._busy,
        )
        self.expect_queues(self._watch.add(receiver))
        return receiver

    def _subscription(self, queue: QueueSpec) -> str:
        return self.source(queue).partition(" ")[0]

    def ack(self, delivery: Delivery, done: Done) -> None:
        """See `Broker.ack`. Pub/Sub says yes to acks of leases that are over, too."""
        self._acks.ack(self._subscription(delivery.queue), delivery, done)

    def nack(self, deliveries: Sequence[Delivery], done: Done) -> None:
        """See `Broker.nack`."""
        self.park(deliveries, 0, done)

    def park(self, deliveries: Sequence[Delivery], seconds: float, done: Done) -> None:
        """See `Broker.park`. The pause is rounded up to whole seconds."""
        queues = {delivery.queue for delivery in deliveries}
        if len(queues) > 1:
            raise ValueError("the deliveries are of several queues")
        if not queues:
            self._post(done, None, None)
            return
        self._acks.modify(self._subscription(queues.pop()), deliveries, seconds, done)

    def dead_letters(self) -> DeadLetters:
        """See `Broker.dead_letters`: a topic with a subscription for each queue."""
        return PubSubDeadLetters(self.channel, self._names, self._publisher, self._post)

    def lease_spec(self) -> dict[str, Any]:
        """See `Broker.lease_spec`. Credentials do not go along: the keeper uses application default credentials."""
        place = self._place
        return {"kind": "pubsub", "project": place.project, "address": place.address, "secure": place.secure}

    def tick(self) -> None:
        """See `Broker.tick`: stuck requests, a stuck connection, queues that nothing comes from."""
        now = time.monotonic()
        if now - self._ticked_at < TICKS_APART:  # each of the callers that wait for an answer ticks
            return
        self._ticked_at = now
        self._publisher.kick()
        self._acks.kick()
        self._watch.tick()

    def stats(self) -> dict[str, float]:
        """See `Broker.stats`."""
        channel = self.channel
        return {
            "calls": channel.calls,
            "calls_in_flight": len(channel),
            "channel_renewals": channel.renewals,
            "publishes": self._publisher.requests,
            "published": self._publisher.messages,
            "acks": self._acks.requests,
            "connections_allowed": channel.connections,
        }

    def reset_after_fork(self) -> None:
        """See `Broker.reset_after_fork`."""
        self._post = Dispatcher(lambda: self.dispatch).post
        self.channel.abandon()
        self._make()

    def close(self) -> None:
        """See `Broker.close`. Receivers should be stopped before."""
        if self._closed:
            return
        self._closed = True
        deadline = time.monotonic() + CLOSE_TIMEOUT
        while not (self._publisher.idle() and self._acks.idle()) and time.monotonic() < deadline:
            self._publisher.kick()
            self._acks.kick()
            time.sleep(0.005)
        for queue in self._leaving.values():
            self._watch.quietly(lambda queue=queue: self._admin.delete_member(queue))  # type: ignore[misc]
        self._watch.close()
        self.channel.close()


def _nobody(result: Any, error: Exception | None) -> None:
    """For acks that nobody waits for."""


def from_url(url: str, declare: str = "") -> PubSubBroker:
    """Make a broker from ``pubsub://PROJECT[?endpoint=…&prefix=…&declare=…]``.

    Args:
        url: The URL.
        declare: ``auto``, ``check`` or ``never``, whatever the URL says; "": as that says.

    Raises:
        ConfigError: The URL is not of this form.
    """
    place = place_from_url(url)
    endpoint = f"{'https' if place.secure else 'http'}://{place.address}"
    return PubSubBroker(place.project, endpoint=endpoint, prefix=place.prefix, declare=declare or place.declare)


def from_clients(publisher: Any, subscriber: Any, project: str, **options: Any) -> PubSubBroker:
    """Make a broker from Google's own client objects: their credentials and endpoint are used, their channels not.

    Args:
        publisher: A `google.cloud.pubsub_v1.PublisherClient`, or None.
        subscriber: A `google.cloud.pubsub_v1.SubscriberClient`, or None.
        project: The project's id.
        options: For `PubSubBroker`.
    """
    from psq.google.clients import settings_of

    found: Mapping[str, Any] = settings_of(publisher if publisher is not None else subscriber)
    return PubSubBroker(project, endpoint=found["endpoint"], credentials=found["credentials"], **options)
