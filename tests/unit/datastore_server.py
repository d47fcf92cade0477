"""A Datastore in memory with the manners that no emulator has: refusals, partial commits, answers that are lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psq.google.channel import Method, Target
from psq.google.errors import CallError
from psq.storages.base import Storage
from psq.storages.datastore import DatastoreStorage
from psq.storages.datastore_api import pb

Key = tuple[str, str]


def key_of(key: Any) -> Key:
    return key.path[0].kind, key.path[0].name


class Server:
    """Stands where the channel stands, and answers at once in the caller's thread.

    Attributes:
        entities: Key -> (version, entity).
        requests: All that was asked, in order.
        before: Called with each commit; raises CallError for one that has no effect.
        after: Called with each commit that took effect; raises CallError where its answer is lost.
        lookup: Called with each look-up; raises CallError.
        bad: Keys that are refused with INVALID_ARGUMENT.
        partial: A commit that is refused has written what came before the culprit.
        keeps_fail: False: a stale update is skipped and reported instead of refused.
        defers: Keys that a look-up answers at most.
        held: Answers that wait for `release`, while `hold` is set.
        late: Calls that did not end at their own timeouts.
        renewed: Why the channel was made anew.
        abandoned: True once a forked child has let go of it.
    """

    def __init__(self) -> None:
        self.target = Target("memory:1", secure=False)
        self.entities: dict[Key, tuple[int, Any]] = {}
        self.requests: list[Any] = []
        self.before: Callable[[Any], None] = lambda request: None
        self.after: Callable[[Any], None] = lambda request: None
        self.lookup: Callable[[Any], None] = lambda request: None
        self.bad: set[Key] = set()
        self.partial = False
        self.keeps_fail = True
        self.defers = 10_000
        self.hold = False
        self.held: list[Callable[[], None]] = []
        self.late = 0
        self.renewed: list[str] = []
        self.abandoned = False
        self._version = 0

    @property
    def commits(self) -> list[Any]:
        return [request for request in self.requests if hasattr(request, "mutations")]

    @property
    def lookups(self) -> list[Any]:
        return [request for request in self.requests if hasattr(request, "keys")]

    def start(
        self, method: Method, request: Any, timeout: float, done: Callable[..., None], *, metadata: Any = None
    ) -> None:
        if method.serialize is None:
            copy = pb().CommitRequest.FromString(request)
        else:
            copy = type(request).FromString(method.serialize(request))
        self.requests.append(copy)

        def answer() -> None:
            try:
                response = self._commit(copy) if hasattr(copy, "mutations") else self._lookup(copy)
            except CallError as error:
                done(None, error)
            else:
                done(response, None)

        if self.hold:
            self.held.append(answer)
        else:
            answer()

    def release(self) -> None:
        self.hold = False
        while self.held:
            self.held.pop(0)()

    def overdue(self) -> int:
        return self.late

    def renew(self, reason: str) -> None:
        self.renewed.append(reason)

    def abandon(self) -> None:
        self.abandoned = True

    def close(self) -> None:
        pass

    def _lookup(self, request: Any) -> Any:
        self.lookup(request)
        response = _response(pb().lookup)
        for key in request.keys[: self.defers]:
            if (there := self.entities.get(key_of(key))) is not None:
                found = response.found.add()
                found.version = there[0]
                found.entity.CopyFrom(there[1])
        response.deferred.extend(request.keys[self.defers :])
        return response

    def _commit(self, request: Any) -> Any:
        self._portable(request)
        self.before(request)
        after = dict(self.entities)
        response = _response(pb().commit)
        for mutation in request.mutations:
            try:
                self._apply(mutation, after, response.mutation_results.add())
            except CallError:
                if self.partial:
                    self.entities = after
                raise
        self.entities = after
        self.after(request)
        return response

    def _apply(self, mutation: Any, entities: dict[Key, tuple[int, Any]], result: Any) -> None:
        operation = mutation.WhichOneof("operation")
        value = getattr(mutation, operation)
        if operation == "delete":
            entities.pop(key_of(value), None)
            return
        key = key_of(value.key)
        if key in self.bad:
            raise CallError("INVALID_ARGUMENT", f"{key} is bad")
        there = entities.get(key)
        if operation == "insert" and there is not None:
            raise CallError("ALREADY_EXISTS", f"{key} exists")
        if operation == "update":
            if there is None:
                raise CallError("NOT_FOUND", f"no {key}")
            if mutation.base_version != there[0]:
                if self.keeps_fail:
                    raise CallError("FAILED_PRECONDITION", f"{key} has another version")
                result.conflict_detected = True
                return
        self._version += 1
        entities[key] = (self._version, value)
        result.version = self._version

    def _portable(self, request: Any) -> None:
        """What does not mean the same on every server must not be used at all."""
        assert request.mode == pb().NON_TRANSACTIONAL
        keys = []
        for mutation in request.mutations:
            operation = mutation.WhichOneof("operation")
            assert not mutation.HasField("property_mask")
            assert not mutation.property_transforms
            assert (operation == "update") == (mutation.conflict_resolution_strategy == pb().FAIL)
            assert operation == "update" or mutation.conflict_resolution_strategy == 0
            value = getattr(mutation, operation)
            keys.append(key_of(value if operation == "delete" else value.key))
        assert len(keys) == len(set(keys)), "a commit must not name a key twice"
        assert len(keys) <= 400
        assert len(keys) == 1 or request.ByteSize() <= 3_600_000


def _response(method: Method) -> Any:
    assert method.deserialize is not None
    return method.deserialize(b"")


def storage_on(server: Server, **options: Any) -> DatastoreStorage:
    """A storage whose channel is the server."""
    storage = DatastoreStorage(project="psq-test", **options)
    storage._channel = server  # type: ignore[assignment]
    assert isinstance(storage, Storage)
    return storage
