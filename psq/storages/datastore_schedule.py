"""What is due, and deleting it without reading it again."""

from __future__ import annotations

from collections.abc import Sequence

from psq.storages.base import Scheduled
from psq.storages.datastore_api import Api
from psq.storages.datastore_entities import ETA, eta_of
from psq.storages.datastore_heads import Heads
from psq.storages.datastore_listing import read_heads
from psq.storages.datastore_values import milliseconds

__all__ = ["Schedule"]

#: Messages remembered between `due` and `delete`.
KNOWN = 10_000


class Schedule:
    """The kind psq-eta, read by ranges of keys: no index, and no hot spot in one.

    Args:
        api: The database.
        heads: Deletes messages with their parts.
    """

    def __init__(self, api: Api, heads: Heads) -> None:
        self._api, self._heads = api, heads
        self._known: set[str] = set()  # keys that were read here, so that it is known whether they have parts
        self._large: set[str] = set()

    def due(self, shard: int, now: float, limit: int) -> list[Scheduled]:
        """See `Storage.due`."""
        api, what = self._api, "reading the schedule"
        request = api.query(ETA, limit)
        api.key_range(request, ETA, f"{shard}:", f"{shard}:{milliseconds(now) + 1:013d}")
        heads = {result.entity.key.path[0].name: result for result in api.results(request, what)}
        if len(self._known) > KNOWN:
            self._known, self._large = set(), set()
        self._large.update(name for name, result in heads.items() if "parts" in result.entity.properties)
        self._known.update(heads)
        found = read_heads(api, ETA, heads, "e", eta_of, what)
        # the key says whole milliseconds, so the last of them may be still to come
        return sorted((item for item in found.values() if item.due_at <= now), key=lambda item: item.due_at)

    def delete(self, keys: Sequence[str]) -> None:
        """See `Storage.unschedule`."""
        large = self._large
        parted = [key for key in keys if key in large] if self._known.issuperset(keys) else None
        self._heads.delete(ETA, "e", list(keys), parted, "deleting from the schedule")
        self._known.difference_update(keys)
        large.difference_update(keys)
