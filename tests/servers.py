"""An emulator that several pytest processes share.

    python -m tests.servers pubsub|datastore|firestore

Writes ``VARIABLE=address`` to its standard output, as soon as it runs, and lets
go of it; nothing where this machine has no such emulator. Ends it when standard
input ends, so it does not outlive who asked for it; and on SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests import parts

#: Megabytes for a JVM that all lanes use.
HEAP = 1536

MAKERS: dict[str, Callable[[], parts.Part]] = {
    "pubsub": parts.pubsub_emulator,
    "datastore": parts.datastore_emulator,
    "firestore": parts.firestore_emulator,
}


def _terminated(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one is not to interrupt the end
    raise SystemExit(143)


def main(make: Callable[[], parts.Part]) -> None:
    """Run it until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for those who use it
    signal.signal(signal.SIGTERM, _terminated)
    try:
        part = make()
    except (pytest.skip.Exception, pytest.fail.Exception):
        return  # the tests tell it
    part.heap = HEAP
    try:
        print(f"{parts.SHARED[make.__name__]}={part.start()}", flush=True)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        sys.stdin.read()
    finally:
        part.stop()


if __name__ == "__main__":
    main(MAKERS[sys.argv[1]])
