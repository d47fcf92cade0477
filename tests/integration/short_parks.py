"""For `imports:` of a daemon under test: what is due in more than 2 s is due beyond a park, as after 600 s."""

from __future__ import annotations

from psq.brokers.pubsub import PubSubBroker

PubSubBroker.max_park = 2.0
