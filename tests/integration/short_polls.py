"""For `imports:` of a daemon under test: a long poll ends after 3 s instead of a minute."""

from __future__ import annotations

from psq.brokers import pubsub_receiver

pubsub_receiver.DEFAULT_POLL = 3.0
