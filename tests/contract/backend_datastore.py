"""Datastore for the contract suite, on both real emulators: each test in a project of its own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import uuid
from collections.abc import Callable, Iterator

from psq.storages.base import Storage
from tests import parts
from tests.contract.backends import StoragePlace

_running: dict[str, parts.Part] = {}


def emulator(make: Callable[[], parts.Part]) -> str:
    """Address of an emulator that runs until the process ends."""
    part = _running.get(make.__name__)
    if part is None:
        part = make()
        part.start()
        atexit.register(part.stop)
        _running[make.__name__] = part
    return part.address


class DatastorePlace(StoragePlace):
    """A project of its own in an emulator."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self.project = f"t-{uuid.uuid4().hex[:12]}"

    def make(self) -> Storage:
        """Another storage on this place."""
        from psq.storages.datastore import DatastoreStorage

        return DatastoreStorage(project=self.project, endpoint=f"http://{self.address}")


@contextlib.contextmanager
def datastore_storages(make: Callable[[], parts.Part]) -> Iterator[StoragePlace]:
    """An empty project."""
    place = DatastorePlace(emulator(make))
    try:
        yield place
    finally:
        place.close()


STORAGES = {
    "datastore": functools.partial(datastore_storages, parts.datastore_emulator),
    "firestore": functools.partial(datastore_storages, parts.firestore_emulator),
}
