"""What all tests share: a clean environment, the real servers, and the list of what was not tested."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests import parts
from tests.front.client import Front
from tests.front.process import front as running_front
from tests.front.process import trust

#: Variables that would send a test somewhere else: scrubbed before anything reads them.
FOREIGN = ("DATASTORE_EMULATOR_HOST", "FIRESTORE_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT", "PUBSUB_EMULATOR_HOST")

# `--hypothesis-profile=few`: for lanes that repeat tests which another lane runs with the full number.
settings.register_profile("few", max_examples=20)


def pytest_configure(config: pytest.Config) -> None:
    for name in list(os.environ):
        if name.startswith("PSQ_") or name in FOREIGN:
            del os.environ[name]

    trust()

    def terminated(*_: Any) -> None:
        pytest.exit("terminated", returncode=143)  # so that the servers are ended, too

    signal.signal(signal.SIGTERM, terminated)
    # A shell has its background jobs ignore it, and what we start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if parts.missing:
        terminalreporter.section("not tested")
        for part, reason in sorted(parts.missing.items()):
            terminalreporter.write_line(f"{part}: {reason}")


@pytest.fixture(scope="session")
def pubsub_emulator() -> Iterator[str]:
    """Address of a real Pub/Sub emulator."""
    yield from parts.running(parts.pubsub_emulator)


@pytest.fixture(scope="session")
def datastore_emulator() -> Iterator[str]:
    """Address of Datastore's emulator, strongly consistent."""
    yield from parts.running(parts.datastore_emulator)


@pytest.fixture(scope="session")
def firestore_emulator() -> Iterator[str]:
    """Address of Firestore's emulator in Datastore mode."""
    yield from parts.running(parts.firestore_emulator)


@pytest.fixture(scope="session")
def front_process(pubsub_emulator: str, datastore_emulator: str) -> Iterator[Front]:
    """The front, before both emulators."""
    with running_front(pubsub_emulator, datastore_emulator) as front:
        yield front


@pytest.fixture
def front(front_process: Front, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """The front with its default manners, for clients of this process and of those that it starts."""
    for name, value in front_process.environment().items():
        monkeypatch.setenv(name, value)
    front_process.reset()
    yield front_process
    front_process.reset()
