"""The seam to a broker: publish, receive, ack, nack, park; and the keeper's own small one, `LeaseClient`."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from psq.errors import MessageInvalid
from psq.group_commit import Done
from psq.message import decode

__all__ = ["Broker", "DeadLetter", "DeadLetters", "Delivery", "LeaseClient", "Outgoing", "QueueSpec", "Receiver"]


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """What a broker must know about a queue.

    Attributes:
        name: The queue's name, without prefix.
        broadcast: Every worker gets a copy.
        member: (broadcast, daemon only) the stable name of this worker's own copy, ``host-0``.
        ack_deadline: Seconds of the first lease, 10 to 600.
        retention: Seconds that a message is kept, asked for; the server may refuse more than 7 days.
        delete_on_close: (broadcast) the member's subscription goes when its daemon drains.
        lasting: (broadcast) the member's subscription is made by a deployer, and waits for its daemon for ever.
    """

    name: str
    broadcast: bool = False
    member: str = ""
    ack_deadline: float = 10.0
    retention: float = 31 * 86400.0
    delete_on_close: bool = False
    lasting: bool = False


@dataclass(slots=True)
class Outgoing:
    """A message to publish.

    Attributes:
        queue: Where to.
        data: The document (`psq.message.encode`).
        attributes: Beside it.
        due_at: Unix time; a broker whose `schedules` is True delivers it no earlier, others pass it on.
        task_id: For errors.
    """

    queue: QueueSpec
    data: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)
    due_at: float | None = None
    task_id: str = ""


class Delivery:
    """One handing-over of a message to us. Book-keeping is keyed by this object, never by task id.

    Attributes:
        queue: The queue's spec, as given to `Broker.receiver`.
        lease_key: What the broker knows this delivery by: an ack id, or ``seq:lease``.
        data: The document.
        attributes: Beside it; {} on SQLite.
        asked_at: Monotonic instant when the request that brought it was *sent*: the lease began no earlier.
        lease_until: Monotonic instant, `asked_at` plus the subscription's ack deadline.
        redelivered: True or False where the broker knows, else None.
        slot: (psqd) its place in the memory shared with the keeper; -1 while it is not held.
        arrived_at: (psqd) monotonic instant when its consumer got it.
    """

    __slots__ = (
        "arrived_at",
        "asked_at",
        "attributes",
        "data",
        "lease_key",
        "lease_until",
        "queue",
        "redelivered",
        "slot",
    )

    def __init__(
        self,
        queue: QueueSpec,
        lease_key: str,
        data: bytes,
        attributes: Mapping[str, str],
        asked_at: float,
        lease_until: float,
        redelivered: bool | None,
    ) -> None:
        self.queue, self.lease_key, self.data, self.attributes = queue, lease_key, data, attributes
        self.asked_at, self.lease_until, self.redelivered = asked_at, lease_until, redelivered
        self.slot = -1
        self.arrived_at = 0.0


class Receiver(abc.ABC):
    """Leases messages of one queue. Made by `Broker.receiver`; all methods return at once.

    Attributes:
        answered_at: Monotonic instant of the last *answer* of a receive (an empty one counts); 0.0 for none.
        error: Why the last receive failed, "" when it did not.
        missing: Why nothing will come until somebody mends what it receives from, "" where that is fine.
        asked_at: Monotonic instant when the oldest receive in flight was sent, or of those that ended since
            the last answer without a sign of life; 0.0 where nothing is waited for.
        poll_seconds: Seconds after which a receive that finds nothing is answered, at the latest.
        requests: Receives in flight.
        stats: ``{"receives": n, "empty": n, "messages": n, "errors": n}``, counted since the start.
    """

    answered_at: float = 0.0
    asked_at: float = 0.0
    poll_seconds: float = 60.0
    error: str = ""
    missing: str = ""
    requests: int = 0
    stats: dict[str, int]

    @abc.abstractmethod
    def start(self) -> None:
        """Begin to receive. Idempotent."""

    @abc.abstractmethod
    def ask(self, n: int) -> None:
        """Say how many messages the consumer can take right now, beyond those it has.

        What is on its way counts against it: the receiver never has requests out for more
        than the last `n` (less what it delivered since). Cheap; called after every task.
        """

    @abc.abstractmethod
    def stop(self, grace: float, stopped: Callable[[], None]) -> None:
        """Receive no more.

        Sends no more requests at once; lets those in flight answer for `grace` seconds (what they
        bring is delivered as before: the consumer gives it back), cancels the rest, then
        calls `stopped`. Idempotent.
        """


class LeaseClient(abc.ABC):
    """What the keeper needs of a broker: no deliveries, no gevent, no Google client.

    Methods return at once; `done` is called from another thread, once:
    ``done(lost_keys, error)``. `lost_keys` are those that the broker *knows* to be lost.
    """

    @abc.abstractmethod
    def connect(self) -> None:
        """Make the connection now, not at need. Never blocks for long, never raises for a server that is away."""

    @abc.abstractmethod
    def extend(
        self, source: str, keys: Sequence[str], seconds: float, timeout: float, done: Callable[..., None]
    ) -> None:
        """Extend leases.

        Args:
            source: `Broker.source(queue)` of these leases.
            keys: Lease keys of one source; at most `max_keys`.
            seconds: New length counted from now.
            timeout: Seconds for this request.
            done: ``done(lost_keys, error)``.
        """

    @abc.abstractmethod
    def give_back(self, source: str, keys: Sequence[str], timeout: float, done: Callable[..., None]) -> None:
        """Give leases back, so that others get the messages at once. See `extend`."""

    @abc.abstractmethod
    def strike(
        self, source: str, items: Sequence[tuple[str, bytes]], record: Mapping[str, Any], done: Callable[..., None]
    ) -> None:
        """Publish started messages again with one more strike, then ack the old deliveries.

        Args:
            source: As in `extend`.
            items: (lease key, document) of each. SQLite reads the document from its row.
            record: ``{"signal": …, "host": …, "at": …}``, perhaps ``"last": True`` (`psq.message.add_strike`).
            done: ``done(keys_not_done, error)``; those were left as they are.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything; calls in flight end with an error."""

    #: Most keys in one request.
    max_keys: ClassVar[int] = 1000
    #: `strike` reads the documents from the broker: those in its items may be empty.
    knows_documents: ClassVar[bool] = False


@dataclass(slots=True)
class DeadLetter:
    """A task that could never be run, or ran out of retries; kept with its payload.

    Attributes:
        id: Task id (of an undecodable payload: ``bad-`` and a hash of it).
        attempt: The attempt that ended here.
        queue: The queue it came from.
        function: Its function's name, "" where unknown.
        reason: Short and stable: ``undecodable``, ``not allowed``, ``not found``, ``too new``,
            ``out of retries``, ``worker died``, ``arguments``.
        payload: The document exactly as received.
        error: ``Type: text`` or "".
        traceback: Text or "".
        enqueued_at: Unix time, 0.0 where unknown.
        died_at: Unix time.
        deaths: (``worker died``) the strikes: signal, host and time of each.
    """

    id: str
    attempt: int
    queue: str
    function: str
    reason: str
    payload: bytes
    error: str = ""
    traceback: str = ""
    enqueued_at: float = 0.0
    died_at: float = field(default_factory=time.time)
    deaths: Sequence[Mapping[str, Any]] = ()

    @property
    def run(self) -> int:
        """The run that ended here, as its payload says: 1, and one more for each time it was requeued."""
        try:
            return decode(self.payload).run
        except MessageInvalid:
            return 1

    @property
    def key(self) -> str:
        """What it is stored, shown and requeued by: ``id:attempt``; of a later run ``id:attempt.run``.

        With the run in it, a task that dies again while its letter is being requeued is a letter of its own.
        """
        run = self.run
        return f"{self.id}:{self.attempt}" if run == 1 else f"{self.id}:{self.attempt}.{run}"


class DeadLetters(abc.ABC):
    """Where dead letters are kept: a storage that can list, else the broker's own place."""

    @abc.abstractmethod
    def put_dead(self, letter: DeadLetter, done: Done) -> None:
        """Keep one; writing the same key again replaces it. Returns at once, calls ``done(None, error)``."""

    @abc.abstractmethod
    def list_dead(self, queue: str | None = None, limit: int | None = None) -> Iterator[DeadLetter]:
        """Newest first where the place can sort; blocking.

        Args:
            queue: Only of this queue; None: of all.
            limit: At most so many.
        """

    @abc.abstractmethod
    def get_dead(self, id: str) -> list[DeadLetter]:
        """By key, or all attempts of a task id. Blocking; [] where there is none."""

    @abc.abstractmethod
    def delete_dead(self, keys: Sequence[str]) -> None:
        """Delete by key; unknown ones are no error. Blocking."""

    def discard(self, letters: Sequence[DeadLetter]) -> None:
        """Delete these letters, but none that was written under the same key since they were read. Blocking.

        What can't be decoded dies again under the same key when it is requeued.
        """
        known = {letter.key: letter.died_at for letter in letters}
        found = (letter for key in known for letter in self.get_dead(key))
        self.delete_dead([letter.key for letter in found if known.get(letter.key) == letter.died_at])


class Broker(abc.ABC):
    """A broker, for both sides. Safe from any thread and greenlet; made anew after a fork.

    `done` callbacks go through `dispatch`, which psqd sets so that they run on
    its hub; by default they run in the thread that completed the call.
    """

    #: Short name, as in the URL.
    scheme: ClassVar[str]
    #: Messages survive a power loss once `publish` returned.
    durable: ClassVar[bool] = True
    #: It delivers a message with a `due_at` no earlier: no parking and no schedule needed.
    schedules: ClassVar[bool] = False
    #: `Delivery.redelivered` is known and lost leases are reported.
    reports_lost_leases: ClassVar[bool] = False
    #: Most bytes of one message, data and attributes.
    max_message_bytes: ClassVar[int] = 10_000_000

    dispatch: Callable[[Callable[[], None]], None] | None = None

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """What `psq.connect` takes to make the same broker; no secrets."""

    @abc.abstractmethod
    def check_queue_name(self, name: str) -> None:
        """Raise ConfigError, with what is valid, where the broker can't have a queue of this name."""

    @abc.abstractmethod
    def publish(self, message: Outgoing, done: Done, *, timeout: float = 10.0) -> None:
        """Send a message with the next request to its queue. Returns at once.

        To a broadcast queue whose spec names a member: for that member alone. The first publish to a
        queue makes sure that it exists, subscription included.
        ``done(None, error)``: no error means that the broker has it. The errors are
        BrokerUnavailable, PublishUnknown, BrokerRefused, MessageTooLarge (at once, locally).

        Args:
            message: The message.
            done: Called once.
            timeout: Seconds, end to end.
        """

    @abc.abstractmethod
    def declare(self, queue: QueueSpec) -> list[str]:
        """Make sure that the queue exists, as a consumer needs it. Blocking.

        Returns:
            Warnings about what exists and differs from what we would have made.

        Raises:
            BrokerUnavailable: Try again.
            BrokerRefused: It can't be had; the text has the gcloud line where there is one.
        """

    def declare_dead(self, queue: QueueSpec) -> None:
        """Make sure that the broker's own place for a queue's dead letters exists. Blocking; raises as `declare`."""

    def lacks(self, queue: QueueSpec) -> list[str] | None:
        """What a daemon must be allowed to do with the queue and is not. Blocking.

        Returns:
            A line for each, with the command that allows it; None where the broker can't tell.

        Raises:
            BrokerUnavailable: Try again.
        """
        return []

    @abc.abstractmethod
    def source(self, queue: QueueSpec) -> str:
        """What `LeaseClient` knows the queue by: a subscription's full name; the queue's own name on SQLite."""

    @abc.abstractmethod
    def receiver(self, queue: QueueSpec, deliver: Callable[[list[Delivery]], None]) -> Receiver:
        """Make a receiver; `deliver` is called (through `dispatch`) with each answer's deliveries; must not block."""

    @abc.abstractmethod
    def ack(self, delivery: Delivery, done: Done) -> None:
        """Done with it. Returns at once, repeats what is transient; ``done(None, error)`` after the answer.

        LeaseLost where the broker knows that it was not ours any more.
        """

    @abc.abstractmethod
    def nack(self, deliveries: Sequence[Delivery], done: Done) -> None:
        """Give deliveries back: they come again at once, to anybody. Returns at once; done once, for all."""

    @abc.abstractmethod
    def park(self, deliveries: Sequence[Delivery], seconds: float, done: Done) -> None:
        """Give deliveries back so that they come again after a pause. The caller holds nothing afterwards.

        Args:
            deliveries: Deliveries of this broker.
            seconds: The pause, counted from now, at most `max_park`.
            done: Called once, for all.
        """

    #: Longest pause of `park`, seconds (600 on Pub/Sub: its longest ack deadline).
    max_park: float = 600.0

    @abc.abstractmethod
    def dead_letters(self) -> DeadLetters:
        """The broker's own place for dead letters, where the storage has none."""

    @abc.abstractmethod
    def lease_spec(self) -> dict[str, Any]:
        """JSON-able; `psqd.keeper.leases.client_from` makes the LeaseClient from it. ``{"kind": "sqlite", …}``."""

    def tick(self) -> None:
        """Called by psqd every second: starts requests that a stuck one holds back."""

    def stats(self) -> dict[str, float]:
        """Counters for metrics and status: requests, connections, whatever the broker has."""
        return {}

    def reset_after_fork(self) -> None:
        """In a forked child: forget connections and requests in flight; the next call makes them anew."""

    @abc.abstractmethod
    def close(self) -> None:
        """Send what waits, then let go. Idempotent."""
