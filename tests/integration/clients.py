"""Tasks with Google clients of their own, as people write them; and one that looks up a name."""

from __future__ import annotations

import os
import socket
import time

from tests.integration.jobs import journal

__all__ = ["look_up", "wait_in_pull"]


def wait_in_pull(endpoint: str, subscription: str, seconds: float, go: str) -> str:
    """Blocks in a client of its own for so many seconds, once the file `go` is there."""
    from google.api_core import exceptions
    from google.cloud import pubsub_v1

    client = pubsub_v1.SubscriberClient(client_options={"api_endpoint": endpoint})
    journal("made")
    while not os.path.exists(go):
        time.sleep(0.05)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0.05:  # an empty answer means nothing
        try:
            client.pull(subscription=subscription, max_messages=1, timeout=left, retry=None)
        except exceptions.DeadlineExceeded:
            pass
    client.close()
    journal("waited")
    return "waited"


def look_up() -> float:
    """Seconds for one look-up of a name."""
    began = time.monotonic()
    socket.getaddrinfo("localhost", 80)
    took = time.monotonic() - began
    journal("looked", took)
    return took
