"""PubSubBroker against the real emulator, bare and behind the front: what it makes, what it finds, what it survives."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from psq.brokers import pubsub_move, pubsub_watch
from psq.brokers import pubsub_wire as wire
from psq.brokers.base import Outgoing, QueueSpec
from psq.brokers.pubsub import PubSubBroker, from_clients, from_url
from psq.errors import BrokerRefused, BrokerUnavailable, ConfigError, PublishUnknown
from psq.message import decode
from tests.contract.helpers import PATIENCE, Answer, Inbox, ack, outgoing, publish, receiving, stop
from tests.front.client import Front
from tests.integration.operator import Operator
from tests.integration.tcp_proxy import TcpProxy

QUEUE = QueueSpec("work")


class Project(Operator):
    """A project of its own, and what an operator does there.

    Args:
        endpoint: ``http://host:port`` of the emulator, or ``host:port`` of the front.
        retention: Seconds that the server keeps messages at most.
    """

    def __init__(self, endpoint: str, retention: int) -> None:
        self.endpoint, self.retention, self.name = endpoint, retention, f"s-{uuid.uuid4().hex[:12]}"
        self._brokers: list[PubSubBroker] = []
        super().__init__(self.make_broker())

    def make_broker(self, endpoint: str = "", **options: Any) -> PubSubBroker:
        options.setdefault("poll", 2.0)
        broker = PubSubBroker(self.name, endpoint=endpoint or self.endpoint, **options)
        self._brokers.append(broker)
        return broker

    def close(self) -> None:
        for broker in self._brokers:
            broker.close()


class Network(Protocol):
    """What happens between us and the server; `endpoint` is where it happens, `connections` were made so far."""

    endpoint: str

    @property
    def connections(self) -> int: ...
    def cut(self) -> None: ...
    def lose_answers(self) -> None: ...  # what is published takes effect, and its answer never comes
    def swallow(self, swallowing: bool) -> None: ...  # when it is over new connections work, old ones never do
    def close(self) -> None: ...


class EmulatorsNetwork:
    def __init__(self, emulator: str) -> None:
        self._proxy = TcpProxy(emulator)
        self.endpoint = f"http://{self._proxy.address}"
        self.cut, self.close = self._proxy.cut, self._proxy.close

    @property
    def connections(self) -> int:
        return self._proxy.accepted

    def lose_answers(self) -> None:
        self._proxy.muting = True

    def swallow(self, swallowing: bool) -> None:
        self._proxy.swallowing = swallowing


class FrontsNetwork:
    def __init__(self, front: Front) -> None:
        self._front, self.endpoint, self.cut = front, front.endpoint, front.cut

    @property
    def connections(self) -> int:
        return int(self._front.stats()["connections_made"])

    def lose_answers(self) -> None:
        self._front.rule("Publish", answer_delay=60.0)

    def swallow(self, swallowing: bool) -> None:
        if swallowing:
            self._front.swallow()
        else:
            self._front.flow()

    def close(self) -> None:
        """The fixture resets it."""


@pytest.fixture(params=["emulator", "front"])
def front_or_none(request: pytest.FixtureRequest) -> Front | None:
    """The front, or None for the bare emulator."""
    front: Front | None = request.getfixturevalue("front") if request.param == "front" else None
    return front


@pytest.fixture
def project(pubsub_emulator: str, front_or_none: Front | None) -> Iterator[Project]:
    if front_or_none is None:
        project = Project(f"http://{pubsub_emulator}", 7 * 86400)
    else:
        project = Project(front_or_none.endpoint, 31 * 86400)
    yield project
    project.close()


@pytest.fixture
def network(pubsub_emulator: str, front_or_none: Front | None) -> Iterator[Network]:
    network: Network = EmulatorsNetwork(pubsub_emulator) if front_or_none is None else FrontsNetwork(front_or_none)
    yield network
    network.close()


def eventually(true: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until something outside of this process has become true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


# what is made


def test_the_first_publish_makes_topic_and_subscription_that_keep_messages_and_never_expire(project: Project) -> None:
    publish(project.make_broker(), outgoing(QUEUE))
    found = project.found()
    assert found.topic == project.topic()
    assert found.ack_deadline_seconds == 10
    assert found.message_retention_duration.seconds == project.retention  # the emulator refuses 31 days
    assert found.HasField("expiration_policy")
    assert found.expiration_policy.ttl.seconds == 0
    assert dict(found.labels) == {"psq": "queue"}


def test_names_begin_with_the_prefix(project: Project) -> None:
    publish(project.make_broker(prefix="shop-staging-"), outgoing(QUEUE))
    name = f"projects/{project.name}/subscriptions/shop-staging-psq-work-shared"
    found = project.call(wire.GET_SUBSCRIPTION, wire.GetSubscriptionRequest(subscription=name))
    assert found.topic == f"projects/{project.name}/topics/shop-staging-psq-work"


def test_a_publish_to_a_broadcast_queue_makes_a_topic_alone(project: Project) -> None:
    publish(project.make_broker(), outgoing(QueueSpec("fleet", broadcast=True)))
    listed = project.call(wire.LIST_SUBSCRIPTIONS, wire.ListSubscriptionsRequest(project=f"projects/{project.name}"))
    assert not listed.subscriptions


def test_a_members_subscription_expires_after_a_day_and_goes_with_its_daemon_if_asked(project: Project) -> None:
    broker = project.make_broker()
    member = QueueSpec("fleet", broadcast=True, member="here-0", delete_on_close=True)
    assert broker.declare(member) == []
    found = project.found("fleet-here-0")
    assert found.expiration_policy.ttl.seconds == 86400
    assert found.message_retention_duration.seconds == 86400
    broker.close()
    assert project.found("fleet-here-0") is None


def test_a_retry_for_one_member_is_not_seen_by_the_others(project: Project) -> None:
    one, two = (project.make_broker() for _ in range(2))
    first = QueueSpec("fleet", broadcast=True, member="here-0")
    second = QueueSpec("fleet", broadcast=True, member="there-0")
    with receiving(one, first) as (a, _), receiving(two, second) as (b, _):
        publish(one, outgoing(first, "retry"), outgoing(QueueSpec("fleet", broadcast=True), "for-all"))
        assert {decode(d.data).id for d in a.take(2)} == {"retry", "for-all"}
        assert decode(b.one().data).id == "for-all"
        assert b.nothing(0.5)
        ack(one, *a.all)
        ack(two, *b.all)


def test_the_ack_deadline_of_a_subscription_that_a_publisher_made_becomes_the_daemons(project: Project) -> None:
    publish(project.make_broker(), outgoing(QUEUE))
    assert project.make_broker().declare(QueueSpec("work", ack_deadline=60.0)) == []
    assert project.found().ack_deadline_seconds == 60


# what others made


def test_a_foreign_ack_deadline_stays_and_is_used_for_the_first_lease(project: Project) -> None:
    project.make_subscription(ack_deadline_seconds=45)
    broker = project.make_broker()
    (warning,) = broker.declare(QUEUE)
    assert "45 s" in warning
    assert project.found().ack_deadline_seconds == 45
    publish(broker, outgoing(QUEUE))
    inbox = Inbox()
    receiver = broker.receiver(QUEUE, inbox)
    receiver.start()
    receiver.ask(1)
    delivery = inbox.one()
    assert delivery.lease_until - delivery.asked_at == 45.0
    ack(broker, delivery)
    stop(receiver)


def test_a_push_subscription_is_refused_by_name(project: Project) -> None:
    project.make_subscription(push_config={"push_endpoint": "https://example.com/hook"})
    with pytest.raises(BrokerRefused, match=r"psq-work-shared can't be used: it pushes"):
        project.make_broker().declare(QUEUE)


def test_an_ordered_subscription_is_refused(project: Project) -> None:
    project.make_subscription(enable_message_ordering=True)
    with pytest.raises(BrokerRefused, match="ordering"):
        project.make_broker().declare(QUEUE)


def test_a_queue_name_that_pubsub_refuses_is_refused_before_anything_is_made(project: Project) -> None:
    with pytest.raises(ConfigError):
        project.make_broker().declare(QueueSpec("no way"))


# births and deaths


def test_a_deleted_topic_is_made_anew_when_a_daemon_starts_and_its_tasks_are_kept(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub_move, "REPAIR_JITTER", 0.01)
    publish(project.make_broker(), *(outgoing(QUEUE, f"t{number}") for number in range(5)))
    project.delete_topic()
    assert project.found().topic == "_deleted-topic_"
    broker = project.make_broker()
    (warning,) = broker.declare(QUEUE)
    assert "made anew" in warning
    assert project.found().topic == project.topic()
    publish(broker, outgoing(QUEUE, "new"))
    with receiving(broker, QUEUE) as (inbox, _):
        found = inbox.take(6)
        assert {decode(d.data).id for d in found} == {"t0", "t1", "t2", "t3", "t4", "new"}
        assert all(d.attributes["psq-id"] == decode(d.data).id for d in found)
        ack(broker, *found)


def test_a_topic_that_is_deleted_under_a_publisher_is_made_anew_with_a_subscription(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub_move, "REPAIR_JITTER", 0.01)
    broker = project.make_broker()
    publish(broker, outgoing(QUEUE, "before"))
    project.delete_topic()
    publish(broker, outgoing(QUEUE, "after"))
    with receiving(project.make_broker(), QUEUE) as (inbox, _):
        assert {decode(d.data).id for d in inbox.take(2)} == {"before", "after"}


@pytest.mark.parametrize("what", ["topic", "subscription"])
def test_what_is_deleted_under_a_running_daemon_is_noticed_and_made_anew(
    project: Project, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(pubsub_move, "REPAIR_JITTER", 0.01)
    monkeypatch.setattr(pubsub_watch, "LOOK_AFTER", 0.5)
    broker = project.make_broker()
    with receiving(broker, QUEUE) as (inbox, receiver):
        publish(broker, outgoing(QUEUE, "before"))
        ack(broker, inbox.one())
        if what == "topic":
            project.delete_topic()
        else:
            project.delete_subscription()

        def mended() -> bool:
            broker.tick()
            found = project.found()
            return found is not None and bool(found.topic == project.topic())

        eventually(mended)
        publish(project.make_broker(), outgoing(QUEUE, "after"))
        delivery = inbox.one()
        assert decode(delivery.data).id == "after"
        assert receiver.error == ""
        ack(broker, delivery)


# networks


def test_a_server_that_is_not_there_is_unavailable_and_says_where(project: Project) -> None:
    broker = project.make_broker("http://127.0.0.1:1")
    answer = Answer()
    broker.publish(outgoing(QUEUE), answer, timeout=0.5)
    with pytest.raises(BrokerUnavailable, match="psq-work"):
        answer.get()
    with pytest.raises(BrokerUnavailable):
        broker.declare(QUEUE)


def test_a_publish_whose_answer_is_lost_is_unknown_and_was_accepted(project: Project, network: Network) -> None:
    broker = project.make_broker(network.endpoint)
    publish(broker, outgoing(QUEUE, "first"))
    network.lose_answers()
    answer = Answer()
    broker.publish(outgoing(QUEUE, "second"), answer, timeout=1.0)
    with pytest.raises(PublishUnknown) as caught:
        answer.get()
    assert caught.value.task_id == "second"
    with receiving(project.make_broker(), QUEUE) as (inbox, _):
        assert "second" in {decode(d.data).id for d in inbox.take(2)}


def test_a_connection_that_is_cut_costs_no_publish_no_ack_and_no_message(project: Project, network: Network) -> None:
    broker = project.make_broker(network.endpoint)
    queue = QueueSpec("work", ack_deadline=10.0)  # what is cut off on its way comes again after it
    with receiving(broker, queue, ask=1000) as (inbox, receiver):
        answers = []
        for number in range(200):
            answer = Answer()
            broker.publish(outgoing(queue, f"t{number}"), answer, timeout=60.0)
            answers.append(answer)
            if number % 50 == 25:
                network.cut()
        for answer in answers:
            answer.get()
        seen: set[str] = set()
        while len(seen) < 200:
            delivery = inbox.one()
            seen.add(decode(delivery.data).id)
            ack(broker, delivery)
            receiver.ask(1000)
        assert seen == {f"t{number}" for number in range(200)}
    assert network.connections >= 2


def test_a_connection_that_swallows_everything_is_made_anew_and_the_queue_is_served(
    project: Project, network: Network
) -> None:
    broker = project.make_broker(network.endpoint, poll=0.5)
    with receiving(broker, QUEUE) as (inbox, receiver):
        publish(broker, outgoing(QUEUE, "before"))
        ack(broker, inbox.one())
        network.swallow(True)
        swallowed_at = time.monotonic()
        eventually(lambda: time.monotonic() - max(receiver.answered_at, swallowed_at) > 1.0)  # not ready meanwhile
        network.swallow(False)  # new connections work; the old one has lost bytes and never will

        def renewed() -> bool:
            broker.tick()
            return broker.stats()["channel_renewals"] >= 1

        eventually(renewed)
        publish(project.make_broker(), outgoing(QUEUE, "after"))
        ack(broker, inbox.one())
        assert receiver.answered_at > swallowed_at


# ways to make a broker


def test_a_url_makes_the_same_broker_again(project: Project) -> None:
    broker = from_url(project.broker.url)
    try:
        publish(broker, outgoing(QUEUE))
        assert broker.url == project.broker.url == f"pubsub://{project.name}?endpoint={project.endpoint}"
    finally:
        broker.close()


def test_googles_own_clients_give_their_endpoint(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from google.cloud import pubsub_v1

    options = None
    if project.endpoint.startswith("http://"):
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", project.endpoint.removeprefix("http://"))
    else:
        options = {"api_endpoint": project.endpoint}
    publisher = pubsub_v1.PublisherClient(client_options=options)
    subscriber = pubsub_v1.SubscriberClient(client_options=options)
    try:
        for clients in ((publisher, subscriber), (None, subscriber)):
            broker = from_clients(*clients, project.name)
            try:
                assert broker.url == project.broker.url
                publish(broker, outgoing(QUEUE))
            finally:
                broker.close()
    finally:
        publisher.transport.close()
        subscriber.close()


def test_a_batch_with_one_message_that_the_server_refuses_fails_that_one_alone(project: Project) -> None:
    broker = project.make_broker()
    broker.declare(QUEUE)
    answers = [Answer() for _ in range(20)]
    for number, answer in enumerate(answers):
        if number == 7:
            broker.publish(Outgoing(QUEUE, b"", {}), answer)  # the emulator refuses empty messages
        else:
            broker.publish(outgoing(QUEUE, f"t{number}"), answer)
    errors = [answer.error() for answer in answers]
    assert [number for number, error in enumerate(errors) if error is not None] == [7]
    assert isinstance(errors[7], BrokerRefused)
