"""Pub/Sub for the contract suite, on the real emulator: each test in a project of its own."""

from __future__ import annotations

import atexit
import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

from psq.brokers.base import Broker, LeaseClient
from tests import parts
from tests.contract.backends import BrokerPlace

_part: parts.Part | None = None


def emulator() -> str:
    """Address of an emulator that runs until the process ends."""
    global _part
    if _part is None:
        part = parts.pubsub_emulator()
        part.start()
        atexit.register(part.stop)
        _part = part
    return _part.address


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
    place = _PubSub(emulator())
    try:
        yield place
    finally:
        place.close()


BROKERS = {"pubsub": pubsub_brokers}
