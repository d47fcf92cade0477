"""For `imports:` of a daemon under test: subscriptions are looked at every second instead of every half minute."""

from __future__ import annotations

from psq.brokers import pubsub_move, pubsub_watch

pubsub_watch.LOOK_AFTER = 1.0
pubsub_move.REPAIR_JITTER = 0.1
