"""What a program is told once when it enqueues into a file that nobody may be reading."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from psq.brokers.base import Broker
from psq.errors import PsqError

__all__ = ["notices"]

#: Variables that Cloud Run, App Engine and Cloud Functions set.
GOOGLE_CLOUD = ("K_SERVICE", "K_REVISION", "CLOUD_RUN_JOB", "GAE_ENV", "GAE_APPLICATION", "FUNCTION_TARGET")


def notices(broker: Broker, environ: Mapping[str, str] | None = None) -> Iterator[str]:
    """What looks wrong about a broker. Blocking: looks into its file.

    Args:
        broker: A client's.
        environ: For tests.
    """
    if broker.scheme != "sqlite":
        return
    environ = os.environ if environ is None else environ
    if any(name in environ for name in GOOGLE_CLOUD):
        yield (
            f"this looks like Google Cloud, and tasks go to the file {broker.url}, which other machines don't see "
            "and which may be gone with this one: set PSQ_BROKER=pubsub://PROJECT"
        )
    seen = getattr(broker, "daemon_seen", None)
    try:
        if seen is not None and seen() is None:
            yield (
                f"no daemon has ever opened {broker.url}: tasks wait there until one does. "
                "If yours runs, does it run as the same user, and with the same PSQ_BROKER or `broker:`?"
            )
    except PsqError:  # the enqueue that follows says it better
        return
