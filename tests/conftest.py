"""What all tests share: a clean environment, the real servers, and the list of what was not tested."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests import parts

#: Variables that would send a test somewhere else: scrubbed before anything reads them.
FOREIGN = ("DATASTORE_EMULATOR_HOST", "FIRESTORE_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT", "PUBSUB_EMULATOR_HOST")


def pytest_configure(config: pytest.Config) -> None:
    for name in list(os.environ):
        if name.startswith("PSQ_") or name in FOREIGN:
            del os.environ[name]

    def terminated(*_: Any) -> None:
        pytest.exit("terminated", returncode=143)  # so that the servers are ended, too

    signal.signal(signal.SIGTERM, terminated)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if parts.missing:
        terminalreporter.section("not tested")
        for part, reason in sorted(parts.missing.items()):
            terminalreporter.write_line(f"{part}: {reason}")


@pytest.fixture(scope="session")
def pubsub_emulator() -> Iterator[str]:
    """Address of a real Pub/Sub emulator."""
    yield from parts.running(parts.pubsub_emulator())


@pytest.fixture(scope="session")
def datastore_emulator() -> Iterator[str]:
    """Address of Datastore's emulator, strongly consistent."""
    yield from parts.running(parts.datastore_emulator())


@pytest.fixture(scope="session")
def firestore_emulator() -> Iterator[str]:
    """Address of Firestore's emulator in Datastore mode."""
    yield from parts.running(parts.firestore_emulator())
