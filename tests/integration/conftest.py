"""Places where a daemon can run: on nothing, on the Pub/Sub emulator, and behind the front."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.front.client import Front
from tests.integration.daemons import Site, site


@pytest.fixture
def sqlite_site(tmp_path: Path) -> Iterator[Site]:
    """The embedded broker and storage, in one file."""
    with site(tmp_path, f"sqlite://{tmp_path}/psq.db", f"sqlite://{tmp_path}/psq.db") as it:
        yield it


@pytest.fixture
def pubsub_site(tmp_path: Path, pubsub_emulator: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The Pub/Sub emulator, a project of its own, results in SQLite."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub_emulator)
    broker = f"pubsub://p-{uuid.uuid4().hex[:8]}"
    with site(tmp_path, broker, f"sqlite://{tmp_path}/results.db", PUBSUB_EMULATOR_HOST=pubsub_emulator) as it:
        yield it


@pytest.fixture
def front_site(tmp_path: Path, front: Front) -> Iterator[Site]:
    """Pub/Sub and Datastore as the services are: behind the front, a project of its own."""
    project = f"p-{uuid.uuid4().hex[:8]}"
    broker = f"pubsub://{project}?endpoint={front.endpoint}"
    with site(tmp_path, broker, f"datastore://{project}?endpoint={front.endpoint}", **front.environment()) as it:
        yield it


@pytest.fixture(params=["sqlite", "pubsub", "front"])
def place(request: pytest.FixtureRequest) -> Site:
    """Each broker in turn."""
    found: Site = request.getfixturevalue(f"{request.param}_site")
    return found
