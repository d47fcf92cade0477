"""The registry of backends that the contract suites run over.

A backend is a context manager that yields a *place*: a broker's or storage's
server or file, empty, for one test. From a place a test opens as many brokers
or storages as it likes, as several processes would. ``backend_pubsub.py`` and
``backend_datastore.py`` add theirs to `BROKERS` and `STORAGES`.
"""

from __future__ import annotations

import abc
import contextlib
import importlib
import importlib.util
import json
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from psq.brokers.base import Broker, LeaseClient, QueueSpec
from psq.storages.base import Storage


class BrokerPlace(abc.ABC):
    """Where brokers of one test meet.

    Attributes:
        lease: Seconds of the first lease, as short as the backend allows.
        late: Seconds by which a delivery that should come at once may be late here.
        never: Seconds that a test waits to see that nothing comes.
        forks: True when a broker may be used in a forked child.
    """

    lease: float = 10.0
    late: float = 10.0
    never: float = 0.5
    forks: bool = False

    def __init__(self) -> None:
        self._opened: list[Broker | LeaseClient] = []

    @abc.abstractmethod
    def make(self) -> Broker:
        """Another broker on this place."""

    @abc.abstractmethod
    def make_lease_client(self, spec: dict[str, Any]) -> LeaseClient:
        """The keeper's client, from `Broker.lease_spec`."""

    def open(self) -> Broker:
        """Another broker on this place; closed at the end of the test."""
        broker = self.make()
        self._opened.append(broker)
        return broker

    def lease_client(self, broker: Broker) -> LeaseClient:
        """The keeper's client for a broker of this place, connected; closed at the end of the test."""
        client = self.make_lease_client(json.loads(json.dumps(broker.lease_spec())))
        client.connect()
        self._opened.append(client)
        return client

    def queue(self, name: str = "work", **options: Any) -> QueueSpec:
        """The spec of a queue, with this place's shortest lease."""
        options.setdefault("ack_deadline", self.lease)
        return QueueSpec(name, **options)

    def close(self) -> None:
        """Close what was opened."""
        while self._opened:
            self._opened.pop().close()


class StoragePlace(abc.ABC):
    """Where storages of one test meet."""

    def __init__(self) -> None:
        self._opened: list[Storage] = []

    @abc.abstractmethod
    def make(self) -> Storage:
        """Another storage on this place."""

    def open(self) -> Storage:
        """Another storage on this place; closed at the end of the test."""
        storage = self.make()
        self._opened.append(storage)
        return storage

    def close(self) -> None:
        """Close what was opened."""
        while self._opened:
            self._opened.pop().close()


BrokerFactory = Callable[[], AbstractContextManager[BrokerPlace]]
StorageFactory = Callable[[], AbstractContextManager[StoragePlace]]


class _SQLiteBrokers(BrokerPlace):
    lease = 0.6
    late = 5.0
    forks = True

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def make(self) -> Broker:
        from psq.brokers.sqlite import SQLiteBroker

        return SQLiteBroker(str(self.path))

    def make_lease_client(self, spec: dict[str, Any]) -> LeaseClient:
        from psq.brokers.sqlite_leases import from_spec

        return from_spec(spec)


class _SQLiteStorages(StoragePlace):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def make(self) -> Storage:
        from psq.storages.sqlite import SQLiteStorage

        return SQLiteStorage(str(self.path))


@contextlib.contextmanager
def sqlite_brokers() -> Iterator[BrokerPlace]:
    """A new file."""
    with tempfile.TemporaryDirectory(prefix="psq-") as folder:
        place = _SQLiteBrokers(Path(folder) / f"{uuid.uuid4().hex[:8]}.db")
        try:
            yield place
        finally:
            place.close()


@contextlib.contextmanager
def sqlite_storages() -> Iterator[StoragePlace]:
    """A new file."""
    with tempfile.TemporaryDirectory(prefix="psq-") as folder:
        place = _SQLiteStorages(Path(folder) / f"{uuid.uuid4().hex[:8]}.db")
        try:
            yield place
        finally:
            place.close()


#: Name -> backend. A factory may call `pytest.skip` where its server is missing.
BROKERS: dict[str, BrokerFactory] = {"sqlite": sqlite_brokers}
STORAGES: dict[str, StorageFactory] = {"sqlite": sqlite_storages}

for _name in ("backend_pubsub", "backend_datastore"):
    if importlib.util.find_spec(f"tests.contract.{_name}") is not None:
        _module = importlib.import_module(f"tests.contract.{_name}")
        BROKERS.update(getattr(_module, "BROKERS", {}))
        STORAGES.update(getattr(_module, "STORAGES", {}))
