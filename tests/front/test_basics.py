"""The front, asked by psq itself: the same answers as of the emulators, a round trip later."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from psq.brokers.base import QueueSpec
from psq.brokers.pubsub import PubSubBroker
from psq.storages.datastore import DatastoreStorage
from tests.contract.helpers import ack, outgoing, publish, receiving
from tests.front.client import Front

QUEUE = QueueSpec("work")


@pytest.fixture
def broker(front: Front) -> Iterator[PubSubBroker]:
    broker = PubSubBroker(f"f-{uuid.uuid4().hex[:12]}", endpoint=front.endpoint)
    yield broker
    broker.close()


def test_messages_go_through_over_tls_with_a_token(front: Front, broker: PubSubBroker) -> None:
    with receiving(broker, QUEUE, ask=50) as (inbox, _):
        publish(broker, *(outgoing(QUEUE, f"t{number}") for number in range(50)))
        found = inbox.take(50)
        assert len(found) == 50
        ack(broker, *found)
    stats = front.stats()
    assert stats["calls"]["Publish"] >= 1
    assert stats["calls"]["Pull"] >= 3  # never more than 20 messages a pull
    assert stats["unauthenticated"] == 0
    assert stats["errors"].keys() <= {"CreateSubscription:NOT_FOUND", "CreateSubscription:INVALID_ARGUMENT"}, stats


def test_datastore_is_behind_the_same_port(front: Front) -> None:
    storage = DatastoreStorage(project=f"f-{uuid.uuid4().hex[:12]}", endpoint=front.endpoint)
    try:
        assert storage.get(["nobody"]) == {}
        assert front.stats()["calls"]["Lookup"] >= 1
    finally:
        storage.close()
