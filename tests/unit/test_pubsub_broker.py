"""PubSubBroker without a server: how it is made, and what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from psq.brokers import pubsub
from psq.brokers.base import Delivery, QueueSpec
from psq.brokers.pubsub import CONNECTIONS, PubSubBroker, from_clients, from_url
from psq.brokers.pubsub_publisher import PUBLISH_BYTES
from psq.errors import ConfigError
from psq.google.channel import connections_for
from psq.google.clients import settings_of


@pytest.fixture
def broker() -> Iterator[PubSubBroker]:
    broker = PubSubBroker("shop", endpoint="http://127.0.0.1:1", prefix="a-")
    yield broker
    broker.close()


def nothing(*_: Any) -> None:
    pass


def test_making_a_broker_connects_nothing(broker: PubSubBroker) -> None:
    assert broker.url == "pubsub://shop?endpoint=http://127.0.0.1:1&prefix=a-"
    assert broker.stats()["calls"] == 0


def test_a_broker_can_be_made_from_its_own_url(broker: PubSubBroker) -> None:
    again = from_url(broker.url)
    assert again.url == broker.url
    again.close()


def test_a_thousand_queues_have_room_from_the_start_and_more_make_the_channel_grow(broker: PubSubBroker) -> None:
    broker.expect_queues(1000)
    assert broker.channel.connections == CONNECTIONS >= connections_for(1000)
    broker.expect_queues(3000)
    assert broker.channel.connections >= connections_for(3000)
    broker.expect_queues(10)
    assert broker.channel.connections >= connections_for(3000)


def test_receivers_are_counted_as_they_come(broker: PubSubBroker) -> None:
    receivers = [broker.receiver(QueueSpec(f"q{number}"), nothing) for number in range(1300)]
    assert broker.channel.connections >= connections_for(len(receivers))
    assert receivers[-1].poll_seconds > 60.0


def test_what_the_keeper_needs_is_json_without_secrets(broker: PubSubBroker) -> None:
    spec = broker.lease_spec()
    assert json.loads(json.dumps(spec)) == {
        "kind": "pubsub",
        "project": "shop",
        "address": "127.0.0.1:1",
        "secure": False,
    }


def test_deliveries_of_several_queues_are_not_parked_together(broker: PubSubBroker) -> None:
    deliveries = [Delivery(QueueSpec(name), "k", b"", {}, 0.0, 0.0, None) for name in ("one", "two")]
    with pytest.raises(ValueError, match="several queues"):
        broker.park(deliveries, 1.0, nothing)


def test_a_broadcast_queue_can_not_be_received_from_without_a_member(broker: PubSubBroker) -> None:
    with pytest.raises(ConfigError, match="needs a member"):
        broker.receiver(QueueSpec("fleet", broadcast=True), nothing)


def test_googles_clients_give_their_endpoint_and_credentials() -> None:
    from google.api_core.client_options import ClientOptions
    from google.cloud import pubsub_v1
    from google.oauth2.credentials import Credentials

    credentials = Credentials("token")  # type: ignore[no-untyped-call]
    options = ClientOptions(api_endpoint="europe-west1-pubsub.googleapis.com")
    client = pubsub_v1.PublisherClient(credentials=credentials, client_options=options)
    try:
        settings = settings_of(client)
        assert settings["credentials"] is credentials
        broker = from_clients(client, None, "shop")
        assert broker.url == "pubsub://shop?endpoint=europe-west1-pubsub.googleapis.com"
        broker.close()
    finally:
        client.transport.close()


def test_googles_clients_with_nothing_special_lead_to_the_service() -> None:
    from google.cloud import pubsub_v1
    from google.oauth2.credentials import Credentials

    client = pubsub_v1.SubscriberClient(credentials=Credentials("token"))  # type: ignore[no-untyped-call]
    try:
        broker = from_clients(None, client, "shop")
        assert broker.url == "pubsub://shop"
        broker.close()
    finally:
        client.close()


def test_something_else_than_a_client_is_refused_with_what_to_give() -> None:
    with pytest.raises(ConfigError, match="PublisherClient"):
        settings_of(object())


def test_fifty_callers_that_tick_while_they_wait_cost_no_more_than_one(
    broker: PubSubBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    monkeypatch.setattr(broker._watch, "tick", lambda: looks.append(1))
    for _ in range(50):
        broker.tick()
    assert len(looks) == 1
    monkeypatch.setattr(pubsub, "TICKS_APART", 0.0)
    broker.tick()
    assert len(looks) == 2


def test_what_a_parent_had_in_hand_is_not_sent_by_its_forked_child(broker: PubSubBroker) -> None:
    """Under gevent a fork copies greenlets and timers that would send it."""
    parents = broker.channel
    broker.reset_after_fork()
    ended: list[Any] = []
    parents.start(PUBLISH_BYTES, b"", 5.0, lambda response, error: ended.append(error))
    (error,) = ended
    assert (error.code, error.transient, error.sent) == ("CANCELLED", False, False)
    assert broker.channel is not parents
