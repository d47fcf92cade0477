"""Pub/Sub for the contract suite, on the real emulator and behind the front: each test in a project of its own."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

from psq.brokers.base import Broker, LeaseClient
from tests import parts
from tests.contract.backends import BrokerPlace
from tests.contract.running import emulator, front


class _PubSub(BrokerPlace):
    lease = 2.0  # the emulator takes less than the service's 10 s
    # It gives one delivery to a poll that was cancelled, and sits on it for a lease; now and then for two.
    late = 15.0
    never = 0.5
    forks = True

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self.project = f"t-{uuid.uuid4().hex[:12]}"

    def make(self) -> Broker:
        from psq.brokers.pubsub import PubSubBroker

        return PubSubBroker(self.project, endpoint=f"http://{self.address}", poll=1.5)

    def make_lease_client(self, spec: dict[str, Any]) -> LeaseClient:
        from psq.brokers.pubsub_leases import from_spec

        return from_spec(spec)


@contextlib.contextmanager
def pubsub_brokers() -> Iterator[BrokerPlace]:
    """An empty project."""
    place = _PubSub(emulator(parts.pubsub_emulator))
    try:
        yield place
    finally:
        place.close()


class _Front(_PubSub):
    """As the service is, but for the shortest ack deadline: with 10 s each test of a lease would take a minute."""

    def make(self) -> Broker:
        from psq.brokers.pubsub import PubSubBroker

        return PubSubBroker(self.project, endpoint=self.address, poll=1.5)


@contextlib.contextmanager
def front_brokers() -> Iterator[BrokerPlace]:
    """An empty project behind the front."""
    with front() as it:
        it.manners(shortest_ack_deadline=2)
        place = _Front(it.endpoint)
        try:
            yield place
        finally:
            place.close()


BROKERS = {"pubsub": pubsub_brokers, "pubsub-front": front_brokers}
