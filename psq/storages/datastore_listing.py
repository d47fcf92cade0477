"""Listings, newest first: ranges of `ix` merged by time; and heads read with their parts.

A view (``s:failed``) that is smaller than a page is read with one query; of a
larger one each shard is a range by itself.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from psq.errors import StorageError
from psq.storages.datastore_api import Api, pb
from psq.storages.datastore_heads import PART, part_names
from psq.storages.datastore_packing import THREAD_BYTES, on_native_thread
from psq.storages.datastore_values import IX_SHARDS, read

__all__ = ["newest_first", "read_heads", "read_named"]

T = TypeVar("T")

#: Entities looked up at a time, and index entries asked for at a time and shard.
PAGE = 100
#: Times that a head is read again because its parts were replaced meanwhile.
AGAIN = 3

log = logging.getLogger("psq")


def newest_first(api: Api, kind: str, views: Sequence[str], limit: int | None, what: str) -> Iterator[str]:
    """Key names of a kind by falling time; each once.

    Args:
        api: The database.
        kind: The kind.
        views: Beginnings of `ix` values, up to where the shard follows: ``s:failed``.
        limit: How many are wanted, or None; a hint: it may go on.
        what: What is being done, for errors.

    Raises:
        StorageUnavailable: Try again.
        StorageRefused: No permission.
    """
    page = PAGE if limit is None else max(1, min(PAGE, limit))
    requests = [_range(api, kind, f"{view}:", page) for view in views]
    ranges: list[Iterator[tuple[str, str]]] = []
    many: list[str] = []
    for view, answer in zip(views, api.call_many(pb().run_query, requests, what), strict=True):
        if api.is_last(answer.batch, page):
            ranges.append(iter(sorted(map(_entry, answer.batch.entity_results), reverse=True)))
        else:  # more than a page: a range a shard
            many.append(view)
    requests = [_range(api, kind, f"{view}:{shard}:", page) for view in many for shard in IX_SHARDS]
    for request, answer in zip(requests, api.call_many(pb().run_query, requests, what), strict=True):
        ranges.append(_entries(api, request, answer, what))
    seen: set[str] = set()
    for _, name in heapq.merge(*ranges, reverse=True):
        if name not in seen:  # one whose state changed meanwhile is in two ranges
            seen.add(name)
            yield name


def _range(api: Api, kind: str, prefix: str, page: int) -> Any:
    names = pb()
    request = api.query(kind, page)
    request.query.projection.add().property.name = "ix"
    filters = request.query.filter.composite_filter
    filters.op = names.AND
    for op, value in ((names.GREATER_THAN_OR_EQUAL, prefix), (names.LESS_THAN, prefix[:-1] + ";")):
        one = filters.filters.add().property_filter
        one.property.name = "ix"
        one.op = op
        one.value.string_value = value
    order = request.query.order.add()
    order.property.name = "ix"
    order.direction = names.DESCENDING
    return request


def _entry(result: Any) -> tuple[str, str]:
    """(Time, key name) of an index entry."""
    entity = result.entity
    return entity.properties["ix"].string_value.rpartition(":")[2], entity.key.path[0].name


def _entries(api: Api, request: Any, answer: Any, what: str) -> Iterator[tuple[str, str]]:
    """(Time, key name) of one range, falling."""
    while True:
        batch = answer.batch
        yield from map(_entry, batch.entity_results)
        if api.is_last(batch, request.query.limit.value):
            return
        request.query.start_cursor = batch.end_cursor
        answer = api.call(pb().run_query, request, what)


def read_named(
    api: Api,
    kind: str,
    names: Iterator[str],
    letter: str,
    decode: Callable[[Any, Sequence[bytes] | None], T | None],
    limit: int | None,
    wanted: Callable[[T], bool],
    what: str,
) -> Iterator[T]:
    """Records by their key names, in that order, a page of look-ups at a time.

    Args:
        api: The database.
        kind: The kind.
        names: Key names.
        letter: Names the kind in the keys of parts.
        decode: Makes a record of a head and its parts.
        limit: At most so many, or None.
        wanted: Says whether a record counts.
        what: What is being done, for errors.
    """
    given = 0
    while limit is None or given < limit:
        page = list(itertools.islice(names, PAGE if limit is None else min(PAGE, max(1, limit - given))))
        if not page:
            return
        found = read_heads(api, kind, api.lookup(kind, page, what), letter, decode, what)
        for name in page:
            record = found.get(name)
            if record is not None and wanted(record) and (limit is None or given < limit):
                given += 1
                yield record


def read_heads(
    api: Api,
    kind: str,
    heads: Mapping[str, Any],
    letter: str,
    decode: Callable[[Any, Sequence[bytes] | None], T | None],
    what: str,
) -> dict[str, T]:
    """Records of heads that were looked up, by key name; parts are read where they have some.

    One that can't be read is left out, and the log says so.
    """
    records: dict[str, T] = {}
    large: list[tuple[str, Any]] = []
    for name, result in heads.items():
        entity = result.entity
        if "parts" in entity.properties:
            large.append((name, entity))
            continue
        packed = entity.properties["packed"].blob_value if "packed" in entity.properties else b""
        record = _decoded(decode, entity, None, len(packed), name)
        if record is not None:
            records[name] = record
    for name, entity in large:  # one at a time: each is large
        record = _with_parts(api, kind, name, entity, letter, decode, what)
        if record is not None:
            records[name] = record
    return {name: records[name] for name in heads if name in records}


def _with_parts(
    api: Api,
    kind: str,
    name: str,
    entity: Any,
    letter: str,
    decode: Callable[[Any, Sequence[bytes] | None], T | None],
    what: str,
) -> T | None:
    for _ in range(AGAIN):
        token = read(entity.properties, "token", "")
        wanted = part_names(letter, name, token, read(entity.properties, "parts", 0))
        found = api.lookup(PART, wanted, what)
        if len(found) == len(wanted):
            parts = [found[part].entity.properties["data"].blob_value for part in wanted]
            return _decoded(decode, entity, parts, sum(map(len, parts)), name)
        head = api.lookup(kind, [name], what).get(name)  # replaced, or deleted, between the two reads?
        if head is None:
            return None
        if read(head.entity.properties, "token", "") == token:
            break
        entity = head.entity
        if "parts" not in entity.properties:
            return _decoded(decode, entity, None, THREAD_BYTES, name)
    log.warning("%s %r: parts of its content are gone", kind, name)
    return None


def _decoded(
    decode: Callable[[Any, Sequence[bytes] | None], T | None],
    entity: Any,
    parts: Sequence[bytes] | None,
    size: int,
    name: str,
) -> T | None:
    try:
        if size < THREAD_BYTES:
            return decode(entity, parts)
        result: T | None = on_native_thread(lambda: decode(entity, parts))
        return result
    except (StorageError, ValueError, TypeError, KeyError, IndexError) as error:
        log.warning("the stored %r can't be read: %s", name, error)
        return None
