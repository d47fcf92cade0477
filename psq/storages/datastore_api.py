"""Calls of the Datastore API in raw protobuf: Commit, Lookup and RunQuery, as futures on one channel."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from psq.concurrency import Waiter
from psq.errors import BrokerError, MissingDependency, PsqError, StorageRefused, StorageUnavailable
from psq.google.channel import Channel, Method
from psq.google.errors import CallError, storage_error
from psq.google.lazily import put_off
from psq.storages.datastore_wire import tag_of

__all__ = ["Api", "Pb", "closed_error", "pb", "translated"]

#: Keys of one Lookup. The limit is 1,000.
LOOKUP_KEYS = 1000
#: Queries at a time.
CALLS = 32
#: Seconds before a read is tried again, and the longest such pause.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0

#: Kind and key name: keys here have one path element.
KeyPath = tuple[str, str]
#: Called once: (EntityResults by key, None) or (what was found, error).
ReadDone = Callable[[dict[KeyPath, Any], "Exception | None"], None]


class Pb:
    """Raw protobuf classes and methods of `google.datastore.v1`; made by `pb`."""

    def __init__(self) -> None:
        try:
            put_off("google.cloud.datastore_v1")
            from google.cloud.datastore_v1.types import datastore, entity, query
        except ImportError as error:
            raise MissingDependency(
                "the Datastore storage needs google-cloud-datastore: pip install google-cloud-datastore"
            ) from error

        def raw(wrapper: Any) -> Any:
            return type(wrapper.pb(wrapper()))

        self.CommitRequest = raw(datastore.CommitRequest)
        self.LookupRequest = raw(datastore.LookupRequest)
        self.RunQueryRequest = raw(datastore.RunQueryRequest)
        self.Mutation = raw(datastore.Mutation)
        self.Key = raw(entity.Key)
        self.Entity = raw(entity.Entity)
        self.QueryBatch = raw(query.QueryResultBatch)
        # a commit is put together as bytes: see datastore_wire
        self.commit = Method("/google.datastore.v1.Datastore/Commit", None, raw(datastore.CommitResponse).FromString)
        self.lookup = self._method("Lookup", self.LookupRequest, raw(datastore.LookupResponse))
        self.run_query = self._method("RunQuery", self.RunQueryRequest, raw(datastore.RunQueryResponse))
        self.MUTATIONS = tag_of(self.CommitRequest, "mutations")
        self.INSERT = tag_of(self.Mutation, "insert")
        self.NON_TRANSACTIONAL = int(datastore.CommitRequest.Mode.NON_TRANSACTIONAL)
        self.FAIL = int(datastore.Mutation.ConflictResolutionStrategy.FAIL)
        self.NOT_FINISHED = int(query.QueryResultBatch.MoreResultsType.NOT_FINISHED)
        self.NO_MORE = int(query.QueryResultBatch.MoreResultsType.NO_MORE_RESULTS)
        self.AND = int(query.CompositeFilter.Operator.AND)
        self.GREATER_THAN_OR_EQUAL = int(query.PropertyFilter.Operator.GREATER_THAN_OR_EQUAL)
        self.LESS_THAN = int(query.PropertyFilter.Operator.LESS_THAN)
        self.DESCENDING = int(query.PropertyOrder.Direction.DESCENDING)
        self.ASCENDING = int(query.PropertyOrder.Direction.ASCENDING)

    @staticmethod
    def _method(name: str, request: Any, response: Any) -> Method:
        return Method(f"/google.datastore.v1.Datastore/{name}", request.SerializeToString, response.FromString)


@functools.cache
def pb() -> Pb:
    """The protobuf classes; loads Google's library on the first call.

    Raises:
        MissingDependency: google-cloud-datastore is not installed.
    """
    return Pb()


class Api:
    """One database, reached over one channel. Safe from any thread and greenlet.

    Args:
        channel: The channel; made anew after a fork by itself.
        project: Project id.
        database: Database id, "" for the default one.
        namespace: Namespace, "" for the default one.
        timeout: Seconds of one call.
    """

    def __init__(self, channel: Channel, project: str, database: str, namespace: str, timeout: float) -> None:
        self.channel, self.project, self.database, self.namespace = channel, project, database, namespace
        self.timeout = timeout
        header = f"project_id={project}"
        if database:
            header += f"&database_id={database}"
        self._prefixes: dict[str, bytes] = {}  # kind -> its keys without their names
        self._metadata = [("x-goog-request-params", header)]

    # futures

    def start(self, method: Method, request: Any, done: Callable[[Any, Exception | None], None]) -> None:
        """Begin a call; see `Channel.start`. Never raises: `done`, then called in this thread, gets the error."""
        try:
            self.channel.start(method, request, self.timeout, done, metadata=self._metadata)
        except PsqError as error:  # no credentials, or no library
            done(None, translated(error, "connecting"))

    def start_lookup(self, paths: Sequence[KeyPath], done: ReadDone) -> None:
        """Read entities; `done` gets their EntityResults by key. Deferred keys are asked for again."""
        found: dict[KeyPath, Any] = {}

        def ask(keys: Sequence[Any]) -> None:
            group, rest = keys[:LOOKUP_KEYS], list(keys[LOOKUP_KEYS:])

            def answered(response: Any, error: Exception | None) -> None:
                if error is not None:
                    done(found, error)
                    return
                for result in response.found:
                    element = result.entity.key.path[0]
                    found[element.kind, element.name] = result
                left = [*response.deferred, *rest]
                if left:
                    ask(left)
                else:
                    done(found, None)

            request = self.request(pb().LookupRequest)
            request.keys.extend(group)
            self.start(pb().lookup, request, answered)

        ask([self.key(kind, name) for kind, name in paths])

    # blocking

    def call(self, method: Method, request: Any, what: str) -> Any:
        """Call and wait; what is transient is tried again until `timeout` is over.

        Args:
            method: One that changes nothing when it is repeated.
            request: Its request.
            what: What is being done, for the error.

        Raises:
            StorageUnavailable: Try again.
            StorageRefused: It would be refused again.
        """
        return self.repeat(lambda: self.channel.call(method, request, self.timeout, metadata=self._metadata), what)

    def repeat(self, call: Callable[[], Any], what: str) -> Any:
        """Do a blocking call again while its error is transient and `timeout` not over; see `call`."""
        deadline = time.monotonic() + self.timeout
        pause = FIRST_PAUSE
        while True:
            try:
                return call()
            except BrokerError as error:  # no credentials
                raise translated(error, what) from error
            except CallError as error:
                if not error.transient or time.monotonic() + pause >= deadline:
                    raise translated(error, what) from error
            time.sleep(pause * random.uniform(0.75, 1.25))
            pause = min(LONGEST_PAUSE, pause * 2)

    def lookup(self, kind: str, names: Iterable[str], what: str) -> dict[str, Any]:
        """Read entities and wait; their EntityResults by key name, unknown ones left out. Errors as `call`."""
        paths = [(kind, name) for name in dict.fromkeys(names)]
        if not paths:
            return {}

        def once() -> dict[str, Any]:
            waiter = Waiter()
            self.start_lookup(paths, lambda found, error: waiter.set((found, error)))
            if not waiter.wait(2 * self.timeout):
                raise CallError("DEADLINE_EXCEEDED", "the look-up did not end in time")
            found, error = waiter.value
            if error is not None:
                raise error
            return {name: result for (_, name), result in found.items()}

        return self.repeat(once, what)  # type: ignore[no-any-return]

    def call_many(self, method: Method, requests: Sequence[Any], what: str) -> list[Any]:
        """Responses of several calls at a time, in order; see `call`."""
        responses: list[Any] = []
        for at in range(0, len(requests), CALLS):
            waiters: list[Waiter] = []
            for request in requests[at : at + CALLS]:
                waiter = Waiter()
                waiters.append(waiter)
                self.start(method, request, lambda *answer, waiter=waiter: waiter.set(answer))
            for waiter, request in zip(waiters, requests[at : at + CALLS], strict=True):
                answered = waiter.wait(2 * self.timeout)
                response, error = waiter.value if answered else (None, None)
                if isinstance(error, PsqError):
                    raise error
                responses.append(self.call(method, request, what) if response is None else response)
        return responses

    # building requests

    def request(self, cls: Any) -> Any:
        """An empty request of this database."""
        request = cls(project_id=self.project)
        if self.database:
            request.database_id = self.database
        return request

    def set_key(self, key: Any, kind: str, name: str) -> None:
        """Fill an empty Key."""
        key.MergeFromString(self.key_prefix(kind))
        key.path[0].name = name

    def key_prefix(self, kind: str) -> bytes:
        """The bytes of a Key without its name."""
        prefix = self._prefixes.get(kind)
        if prefix is not None:
            return prefix
        key = pb().Key()
        partition = key.partition_id
        partition.project_id = self.project
        if self.database:
            partition.database_id = self.database
        if self.namespace:
            partition.namespace_id = self.namespace
        key.path.add().kind = kind
        prefix = self._prefixes[kind] = bytes(key.SerializeToString())
        return prefix

    def key(self, kind: str, name: str) -> Any:
        """A new Key."""
        key = pb().Key()
        self.set_key(key, kind, name)
        return key

    def query(self, kind: str, limit: int | None = None) -> Any:
        """A RunQueryRequest for a kind, without filters."""
        request = self.request(pb().RunQueryRequest)
        partition = request.partition_id
        partition.project_id = self.project
        if self.database:
            partition.database_id = self.database
        if self.namespace:
            partition.namespace_id = self.namespace
        request.query.kind.add().name = kind
        if limit is not None:
            request.query.limit.value = limit
        return request

    def key_range(self, request: Any, kind: str, first: str, end: str) -> None:
        """Limit a query to key names from `first` to before `end`, ascending."""
        names = pb()
        filters = request.query.filter.composite_filter
        filters.op = names.AND
        for op, name in ((names.GREATER_THAN_OR_EQUAL, first), (names.LESS_THAN, end)):
            one = filters.filters.add().property_filter
            one.property.name = "__key__"
            one.op = op
            self.set_key(one.value.key_value, kind, name)
        order = request.query.order.add()
        order.property.name = "__key__"
        order.direction = names.ASCENDING

    def names_between(self, kind: str, first: str, end: str, what: str) -> list[str]:
        """Key names of a range (a keys-only query); blocking, errors as `call`."""
        request = self.query(kind)
        request.query.projection.add().property.name = "__key__"
        self.key_range(request, kind, first, end)
        return [result.entity.key.path[0].name for result in self.results(request, what)]

    @staticmethod
    def is_last(batch: Any, limit: int) -> bool:
        """True where nothing can follow a batch of a query with this limit.

        An emulator says "more after the limit" even where there is nothing.
        """
        short = len(batch.entity_results) < limit and batch.more_results != pb().NOT_FINISHED
        return short or bool(batch.more_results == pb().NO_MORE)

    def results(self, request: Any, what: str) -> Iterator[Any]:
        """EntityResults of a query, over all its batches; blocking, errors as `call`."""
        while True:
            batch = self.call(pb().run_query, request, what).batch
            yield from batch.entity_results
            if batch.more_results != pb().NOT_FINISHED:
                return
            request.query.start_cursor = batch.end_cursor
            request.query.offset = max(0, request.query.offset - batch.skipped_results)
            if request.query.HasField("limit"):
                request.query.limit.value -= len(batch.entity_results)


def translated(error: Exception, what: str) -> PsqError:
    """The error that leaves the storage for one of a call."""
    result = storage_error(error, f"Datastore, {what}")
    if isinstance(result, BrokerError):  # no credentials
        result = StorageRefused(str(result))
        result.everything = True
    return result


def closed_error() -> StorageUnavailable:
    """What a write ends with that was not sent before the storage was closed."""
    return StorageUnavailable("the Datastore storage was closed")
