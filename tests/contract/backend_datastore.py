"""Datastore for the contract suite, on both real emulators and behind the front: each test in a project of its own."""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import Callable, Iterator

from psq.storages.base import Storage
from tests import parts
from tests.contract.backends import StoragePlace
from tests.contract.running import emulator, front


class DatastorePlace(StoragePlace):
    """A project of its own in an emulator."""

    def __init__(self, endpoint: str) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.project = f"t-{uuid.uuid4().hex[:12]}"

    def make(self) -> Storage:
        """Another storage on this place."""
        from psq.storages.datastore import DatastoreStorage

        return DatastoreStorage(project=self.project, endpoint=self.endpoint)


@contextlib.contextmanager
def datastore_storages(make: Callable[[], parts.Part]) -> Iterator[StoragePlace]:
    """An empty project."""
    place = DatastorePlace(f"http://{emulator(make)}")
    try:
        yield place
    finally:
        place.close()


@contextlib.contextmanager
def front_storages() -> Iterator[StoragePlace]:
    """An empty project behind the front."""
    with front() as it:
        place = DatastorePlace(it.endpoint)
        try:
            yield place
        finally:
            place.close()


STORAGES = {
    "datastore": functools.partial(datastore_storages, parts.datastore_emulator),
    "datastore-front": front_storages,
    "firestore": functools.partial(datastore_storages, parts.firestore_emulator),
}
