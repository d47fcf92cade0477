"""Results, dead letters, the schedule and claims in Google Cloud Datastore (or Firestore in Datastore mode).

One channel, raw protobuf, calls as futures: nothing here holds a thread while
it waits. Writes share commits (`datastore_commit`), the schema is in
`datastore_entities`. Expired records are not shown; to have them deleted, set
a TTL policy on the property `expires`, once a project, for each of the kinds
psq-task, psq-claim and psq-part:

    gcloud firestore fields ttls update expires --collection-group=psq-task --enable-ttl
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from psq.brokers.base import DeadLetter
from psq.errors import PsqError
from psq.fork import reset_after_fork
from psq.google.channel import Channel
from psq.google.suspicion import Suspicion
from psq.group_commit import Done
from psq.storages.base import (
    CANCELLED,
    FAILED,
    FINISHED,
    QUEUED,
    RETRYING,
    SCHEDULED,
    STARTED,
    Scheduled,
    Storage,
    TaskRecord,
)
from psq.storages.datastore_api import Api, closed_error
from psq.storages.datastore_commit import KEPT, Committer, Ended
from psq.storages.datastore_entities import (
    CLAIM,
    DEAD,
    Claim,
    DeadHead,
    EtaHead,
    dead_name,
    dead_of,
    died_at,
)
from psq.storages.datastore_heads import Head, Heads
from psq.storages.datastore_listing import newest_first, read_heads, read_named
from psq.storages.datastore_place import Place
from psq.storages.datastore_records import TASK, task_of
from psq.storages.datastore_results import Results
from psq.storages.datastore_schedule import Schedule
from psq.storages.datastore_values import is_expired, ix_name, key_name, read_text

__all__ = ["DatastoreStorage", "from_url"]

#: Seconds of one call, and of what a blocking method tries again in.
DEFAULT_TIMEOUT = 10.0
#: Seconds that `close` waits for what is not yet written.
DEFAULT_CLOSE_TIMEOUT = 10.0
#: Most bytes of a result and its error, of a dead letter, of a scheduled message; before compression.
DEFAULT_MAX_RESULT_BYTES = 32_000_000
#: Connections: 100 calls at a time each.
CONNECTIONS = 2
#: Every state, for listings of all of them.
_STATES = (QUEUED, SCHEDULED, STARTED, RETRYING, FINISHED, FAILED, CANCELLED)


@dataclass(slots=True)
class _Opened:
    api: Api
    commits: Committer
    claims: Committer
    heads: Heads
    results: Results
    schedule: Schedule


class DatastoreStorage(Storage):
    """Datastore, or Firestore in Datastore mode. Loads Google's library on the first request.

    Args:
        client: A `google.cloud.datastore.Client`: its project, database, namespace, endpoint and
            credentials are used where no argument says otherwise; its channel is not.
        project: Project id; by default of the environment or of the application default credentials.
        database: Database id; by default the default one.
        namespace: Namespace; by default the default one.
        endpoint: ``host[:port]``, or ``http://host:port`` without TLS; by default the emulator of
            ``DATASTORE_EMULATOR_HOST`` where it is set, else the service.
        credentials: google-auth credentials; by default the application default credentials.
        store_on_status: States that are written.
        max_result_bytes: Most bytes of a result with its error, a dead letter, a scheduled message.
        timeout: Seconds of one call, and of what a blocking method tries again in.
        close_timeout: Seconds that `close` waits for what is not written yet.

    Raises:
        ConfigError: An argument is not valid, or `client` is not Google's.
    """

    scheme: ClassVar[str] = "datastore"

    def __init__(
        self,
        client: Any = None,
        *,
        project: str | None = None,
        database: str | None = None,
        namespace: str | None = None,
        endpoint: str | None = None,
        credentials: Any = None,
        store_on_status: Sequence[str] | None = None,
        max_result_bytes: int = DEFAULT_MAX_RESULT_BYTES,
        timeout: float = DEFAULT_TIMEOUT,
        close_timeout: float = DEFAULT_CLOSE_TIMEOUT,
    ) -> None:
        self._place = Place.of(
            client,
            project=project,
            database=database,
            namespace=namespace,
            endpoint=endpoint,
            credentials=credentials,
        )
        if store_on_status is not None:
            self.store_on_status = tuple(store_on_status)
        self.max_result_bytes = max_result_bytes
        self._timeout, self._close_timeout = timeout, close_timeout
        self._channel: Channel | None = None
        self._closed = False
        self._forget()
        reset_after_fork(self)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._suspicion = Suspicion()

    @property
    def url(self) -> str:
        """What makes the same storage; no secrets."""
        return self._found().url()

    @property
    def identity(self) -> str:
        """Project, database and namespace."""
        return self._found().identity()

    def _found(self) -> Place:
        self._place = self._place.with_project()
        return self._place

    def _open(self) -> _Opened:
        opened = self._opened
        if opened is not None:
            return opened
        with self._lock:
            if self._opened is None:
                if self._closed:
                    raise closed_error()
                place = self._found()
                if self._channel is None:
                    self._channel = Channel(place.target(), connections=CONNECTIONS)
                api = Api(self._channel, place.project, place.database, place.namespace, self._timeout)
                commits = Committer(api)
                heads = Heads(api, commits, self.max_result_bytes)
                self._opened = _Opened(api, commits, Committer(api), heads, Results(heads), Schedule(api, heads))
            return self._opened

    def _answer(self, done: Done, error: Exception | None) -> None:
        dispatch = self.dispatch
        if dispatch is None:
            done(None, error)
        else:
            dispatch(partial(done, None, error))

    def _put(self, head: Head, done: Ended) -> None:
        try:
            self._open().heads.put(head, done)
        except PsqError as error:
            done(None, error)

    # results

    def put(self, record: TaskRecord, done: Done) -> None:
        """Write a record; see `Storage.put`."""
        try:
            results = self._open().results
        except PsqError as error:
            self._answer(done, error)
            return
        results.put(record, partial(self._ended, done))

    def _ended(self, done: Done, _: Any, error: Exception | None) -> None:
        self._answer(done, error)

    def get(self, ids: Sequence[str]) -> dict[str, TaskRecord]:
        """Read records by id; see `Storage.get`. Expired ones are left out."""
        api, what = self._open().api, "reading results"
        heads = api.lookup(TASK, [key_name(id) for id in ids if id], what)
        records = read_heads(api, TASK, heads, "t", task_of, what)
        return {record.id: record for record in records.values() if not is_expired(record.expires_at)}

    def find(
        self,
        *,
        state: str | None = None,
        queue: str | None = None,
        function: str | None = None,
        limit: int | None = None,
    ) -> Iterator[TaskRecord]:
        """Records, newest first, filtered; expired ones are left out."""
        api, what = self._open().api, "listing results"
        states = _STATES if state is None else (state,)
        if function is not None:
            views = [f"f:{ix_name(function)}:{one}" for one in states]
        elif queue is not None:
            views = [f"q:{ix_name(queue)}:{one}" for one in states]
        else:
            views = [f"s:{one}" for one in states]

        def wanted(record: TaskRecord) -> bool:
            return (
                (state is None or record.state == state)
                and (queue is None or record.queue == queue)
                and (function is None or record.function == function)
                and not is_expired(record.expires_at)
            )

        names = newest_first(api, TASK, views, limit, what)
        return read_named(api, TASK, names, "t", task_of, limit, wanted, what)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete records and their parts; unknown ids are no error."""
        names = [key_name(id) for id in ids if id]
        self._open().heads.delete(TASK, "t", names, None, "deleting results")

    # dead letters

    def put_dead(self, letter: DeadLetter, done: Done) -> None:
        """Keep a dead letter; see `DeadLetters.put_dead`."""
        self._put(DeadHead(letter), partial(self._ended, done))

    def list_dead(self, queue: str | None = None, limit: int | None = None) -> Iterator[DeadLetter]:
        """Dead letters, newest first."""
        api, what = self._open().api, "listing dead letters"
        views = ["a"] if queue is None else [f"q:{ix_name(queue)}"]

        def wanted(letter: DeadLetter) -> bool:
            return queue is None or letter.queue == queue

        names = newest_first(api, DEAD, views, limit, what)
        return read_named(api, DEAD, names, "d", dead_of, limit, wanted, what)

    def get_dead(self, id: str) -> list[DeadLetter]:
        """By key, or all attempts of a task id, the first first."""
        api, what = self._open().api, "reading dead letters"
        names = [dead_name(id)] if ":" in id else []
        prefix = key_name(id) + ":"
        names += api.names_between(DEAD, prefix, prefix[:-1] + ";", what)
        found = read_heads(api, DEAD, api.lookup(DEAD, names, what), "d", dead_of, what)
        letters = [letter for letter in found.values() if id in (letter.id, letter.key)]
        return sorted(letters, key=lambda letter: letter.attempt)

    def delete_dead(self, keys: Sequence[str]) -> None:
        """Delete by key; unknown ones are no error."""
        names = [dead_name(key) for key in keys]
        self._open().heads.delete(DEAD, "d", names, None, "deleting dead letters")

    def discard(self, letters: Sequence[DeadLetter]) -> None:
        """See `DeadLetters.discard`; a letter written between the look and the deletion is not seen."""
        known = {dead_name(letter.key): letter.died_at for letter in letters}
        found = self._open().api.lookup(DEAD, list(known), "reading dead letters")
        same = [name for name, result in found.items() if died_at(result.entity) == known[name]]
        self._open().heads.delete(DEAD, "d", same, None, "deleting dead letters")

    # the schedule

    def schedule(self, item: Scheduled, done: Done) -> None:
        """Keep a message until its time; see `Storage.schedule`."""
        self._put(EtaHead(item, self.shards), partial(self._ended, done))

    def due(self, shard: int, now: float, limit: int) -> list[Scheduled]:
        """What is due in a shard, soonest first."""
        return self._open().schedule.due(shard, now, limit)

    def unschedule(self, keys: Sequence[str]) -> None:
        """Delete by `Scheduled.key`, after they were published."""
        self._open().schedule.delete(keys)

    # claims

    def claim(self, key: str, owner: str, seconds: float) -> bool:
        """Take or prolong a claim; see `Storage.claim`. Machines' clocks should agree within a part of `seconds`."""
        write = Claim(key, owner, seconds)
        return self._open().claims.write([write], self._timeout)[0] is not KEPT

    def release(self, key: str, owner: str) -> None:
        """Let go of a claim that `owner` holds; otherwise nothing."""
        opened = self._open()
        found = opened.api.lookup(CLAIM, [key_name(key)], "releasing a claim")
        if any(read_text(result.entity.properties, "owner") == owner for result in found.values()):
            opened.claims.write([Claim(key, owner, -1.0)], self._timeout)

    # life

    def pending_bytes(self) -> int:
        """Bytes handed over and not yet answered."""
        opened = self._opened
        return 0 if opened is None else opened.commits.pending_bytes()

    def tick(self) -> None:
        """Start commits that a stuck one holds back; a connection on which calls do not end is made anew."""
        opened = self._opened
        if opened is None:
            return
        opened.commits.kick()
        opened.claims.kick()
        if self._suspicion.confirmed(opened.api.channel.overdue()):
            opened.api.channel.renew("calls do not end at their own timeout")

    def reset_after_fork(self) -> None:
        """In a forked child: forget what the parent has under way."""
        if self._channel is not None:
            self._channel.abandon()
            self._channel = None
        self._forget()

    def close(self) -> None:
        """Write what waits, for at most `close_timeout` seconds, then let go. Idempotent."""
        if self._closed:
            return
        self._closed = True
        opened = self._opened
        if opened is None:
            return
        opened.commits.close(self._close_timeout)
        opened.claims.close(0.0)
        opened.api.channel.close()


def from_url(url: str) -> DatastoreStorage:
    """The storage of ``datastore://PROJECT[/DATABASE]?namespace=…&endpoint=…``.

    Raises:
        ConfigError: The URL is not of this form.
    """
    place = Place.of_url(url)
    return DatastoreStorage(
        project=place.project or None,
        database=place.database,
        namespace=place.namespace,
        endpoint=place.endpoint,
    )
