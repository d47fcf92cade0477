"""Receiving from a subscription with unary pulls, driven by their completions: no thread and no greenlet of its own.

One long poll is out while the consumer has room. While answers bring messages, up
to 15 more pulls join it (fewer where many queues are busy: they share the streams);
these are to return immediately, so that they end with the first empty answer. Short
and empty answers are normal and mean nothing.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any

from psq.brokers import pubsub_wire as wire
from psq.brokers.base import Delivery, QueueSpec, Receiver
from psq.brokers.pubsub_pace import Pace
from psq.brokers.pubsub_publisher import MEMBER_ATTRIBUTE
from psq.concurrency import Timer, call_later, original
from psq.google.channel import HOT_PULLS, HOT_QUEUES, Call, Channel
from psq.google.errors import CallError

__all__ = ["DEFAULT_POLL", "PubSubReceiver", "poll_for"]

#: Shortest long poll, seconds: polls of 10 s cost 13 % of a core with 1,000 queues.
DEFAULT_POLL = 60.0
#: Polls that may end in a second while nothing comes: polls are longer where there are very many queues. With a
#: thousand the server ends them first (after 90 s), which costs no cancelled call and is a sign of life.
POLLS_A_SECOND = 10
#: Pulls at a time, the long poll included. Sixteen bring 15 times as much as one at 25 ms and 20 messages a pull.
MAX_PULLS = 1 + HOT_PULLS
#: Pulls beside the long polls in a process: the channel has streams for no more, and acks would wait behind them.
MAX_EXTRA = HOT_PULLS * HOT_QUEUES
#: Seconds for a pull that returns immediately.
SHORT_TIMEOUT = 10.0
#: Seconds that cancelled pulls may take to end.
CANCEL_TIME = 2.0
#: A poll is up to this part longer, so that those of a thousand queues do not end, and go out again, all at once.
SPREAD = 0.15

log = logging.getLogger("psq")


def poll_for(queues: int) -> float:
    """Seconds of a long poll in a daemon of so many queues: each poll that ends costs two milliseconds of CPU."""
    return max(DEFAULT_POLL, queues / POLLS_A_SECOND)


class _Pull:
    __slots__ = ("asked", "call", "is_long", "sent")

    def __init__(self, asked: int, is_long: bool) -> None:
        self.asked, self.is_long = asked, is_long
        self.sent = time.monotonic()
        self.call: Call | None = None


class PubSubReceiver(Receiver):
    """See the module. Safe from any thread and greenlet; nothing blocks.

    Args:
        channel: The service's channel.
        queue: The queue.
        subscription: Full name of what it is received from.
        deliver: Gets each answer's deliveries.
        post: ``post(function, *args)`` runs a callback.
        lease: Gives the seconds of the first lease.
        poll: Seconds of a long poll.
        drop: Acks a delivery that was meant for another member.
        gone: ``gone(receiver)`` when the subscription was not found; `resume` when it is mended.
        denied: ``denied(receiver)`` when we may not receive; it may complete `error`.
        doubtful: ``doubtful(receiver)`` when a poll ended at its own timeout and nothing else was
            heard from the server meanwhile; sets `answered_at` when the server gives a sign of life.
        busy: Receivers of the same channel whose answers bring messages; this one adds itself.
    """

    def __init__(
        self,
        channel: Channel,
        queue: QueueSpec,
        subscription: str,
        deliver: Callable[[list[Delivery]], None],
        post: Callable[..., None],
        *,
        lease: Callable[[], float],
        poll: float,
        drop: Callable[[Delivery], None],
        gone: Callable[[PubSubReceiver], None],
        denied: Callable[[PubSubReceiver], None],
        doubtful: Callable[[PubSubReceiver], None],
        busy: set[PubSubReceiver] | None = None,
    ) -> None:
        self.queue, self.subscription, self.poll_seconds = queue, subscription, poll
        self.stats = {"receives": 0, "empty": 0, "messages": 0, "errors": 0}
        self.messages_at = 0.0  # monotonic instant of the last message
        self.looked_at = time.monotonic()  # of the last look at the subscription; the watch's
        self.mending = False  # the subscription is being made anew; this and the next two are the watch's
        self.mended_at = self.mend_pause = 0.0  # monotonic, and the pause before the last attempt
        self.told = False  # that we may not receive
        self._channel, self._deliver, self._post = channel, deliver, post
        self._lease, self._drop, self._doubtful = lease, drop, doubtful
        self._tell_gone, self._tell_denied = gone, denied
        self._metadata = wire.routing("subscription", subscription)
        self._lock = original("_thread", "allocate_lock")()  # nothing below ever switches while it holds it
        self._pulls: set[_Pull] = set()
        self._long: _Pull | None = None
        self._started = False
        self._want = 0  # as asked, less what was delivered since
        self._on_way = 0  # answered and not yet delivered: a hop through dispatch
        self._out = 0  # asked for by pulls in flight
        self._pace = Pace()
        self._all_busy: set[PubSubReceiver] = set() if busy is None else busy
        self._unanswered = 0.0  # when the first receive was sent of those that ended without any sign of life
        self._timer: Timer | None = None  # a pause is on while there is one
        self._gone = False  # the subscription was not found: wait for `resume`
        self._stopped: list[Callable[[], None]] | None = None  # not None once it stops
        self._ended = False

    @property
    def is_stopping(self) -> bool:
        """True from `stop` on."""
        return self._stopped is not None

    def start(self) -> None:
        """See `Receiver.start`."""
        self._started = True
        self._pump()

    def ask(self, n: int) -> None:
        """See `Receiver.ask`."""
        with self._lock:
            self._want = n - self._on_way
            if n <= 0:
                self._unanswered = 0.0  # no room: nothing is waited for
            pulls = self._next(1 if self._pace.busy else 0) if self._want > self._out else []
        for pull in pulls:
            self._send(pull)

    # sending

    def _pump(self, more: int = 0) -> None:
        """Send the long poll if none is out, and up to `more` others while there is room."""
        with self._lock:
            pulls = self._next(more)
        for pull in pulls:
            self._send(pull)

    def _next(self, more: int) -> list[_Pull]:
        pulls: list[_Pull] = []
        if not self._started or self._stopped is not None or self._timer is not None or self._gone:
            return pulls
        most = min(MAX_PULLS, 1 + MAX_EXTRA // max(1, len(self._all_busy)))
        while (room := self._want - self._out) > 0:
            is_long = self._long is None
            if not is_long and (more <= 0 or len(self._pulls) >= most or not self._pace.worth_another(room)):
                break
            pull = _Pull(self._pace.share(room, self._want, MAX_PULLS), is_long)
            if is_long:
                self._long = pull
            else:
                more -= 1
            self._pulls.add(pull)
            self._out += pull.asked
            pulls.append(pull)
        self._count()
        return pulls

    def _count(self) -> None:
        self.requests = len(self._pulls)
        if self._pace.busy and self._pulls:
            self._all_busy.add(self)
        else:
            self._all_busy.discard(self)
        self.asked_at = self._unanswered or min((pull.sent for pull in self._pulls), default=0.0)

    def _send(self, pull: _Pull) -> None:
        request = wire.PullRequest(
            subscription=self.subscription, max_messages=pull.asked, return_immediately=not pull.is_long
        )
        self.stats["receives"] += 1

        def done(response: Any, error: CallError | None) -> None:
            self._done(pull, response, error)

        timeout = min(SHORT_TIMEOUT, self.poll_seconds)
        if pull.is_long:
            timeout = self.poll_seconds * random.uniform(1.0, 1.0 + SPREAD)
        pull.call = self._channel.start(wire.PULL, request, timeout, done, metadata=self._metadata)
        if self._ended and pull.call is not None:
            pull.call.cancel()

    # answers

    def _done(self, pull: _Pull, response: Any, error: CallError | None) -> None:
        received = response.received_messages if response is not None else ()
        count = len(received)
        now = time.monotonic()
        with self._lock:
            if pull not in self._pulls:
                return  # given up
            self._pulls.discard(pull)
            self._out -= pull.asked
            if self._long is pull:
                self._long = None
            if error is None:
                more = self._answered(pull, count, now)
            else:
                more = self._failed(pull, error, now)
            pulls = self._next(more)
            self._count()
            stopped = self._take_stopped()
        for another in pulls:
            self._send(another)
        if count:
            self._hand_over(pull, received)
        if error is not None:
            self._after_error(pull, error)
        for callback in stopped:
            self._post(callback)

    def _answered(self, pull: _Pull, count: int, now: float) -> int:
        """Take note of an answer; how many more pulls it is worth."""
        self._alive(now)
        if not count:
            self.stats["empty"] += 1
            self._nothing()
            if pull.is_long:
                pause = self._pace.poll_was_empty(now - pull.sent, self.poll_seconds)
                if pause and self._timer is None:
                    self._pause(pause)
            return 0
        self.messages_at = now
        self._pace.brought(count)
        self._want -= count
        self._on_way += count
        return 1 if pull.is_long else 2  # the long poll follows itself

    def _nothing(self) -> None:
        """A pull found nothing: where no other but the long poll is out, the queue is not busy any more."""
        if len(self._pulls) <= (self._long is not None):
            self._pace.busy = False

    def _alive(self, now: float) -> None:
        self.answered_at, self.error, self._unanswered = now, "", 0.0
        self._pace.answered()
        self.told = False
        if not self.mending:  # a subscription whose topic was deleted answers, too
            self.missing = ""

    def _failed(self, pull: _Pull, error: CallError, now: float) -> int:
        if error.code == "DEADLINE_EXCEEDED":  # nothing yet
            self.stats["empty"] += 1
            self._nothing()
            if self._channel.answered_at >= pull.sent:
                self._alive(now)
            else:
                self._unanswered = self._unanswered or pull.sent
            return 0
        if self._stopped is not None and error.code == "CANCELLED":
            return 0  # by us
        self.stats["errors"] += 1
        self.error = str(error)
        if error.code == "RESOURCE_EXHAUSTED":
            self._pace.refused(pull.asked)
        if error.code == "NOT_FOUND":
            self._gone = True
        if self._timer is None and self._stopped is None:
            self._pause(self._pace.failed(error))
        return 0

    def _after_error(self, pull: _Pull, error: CallError) -> None:
        if self._stopped is not None:
            return
        if error.code == "NOT_FOUND":
            self._tell_gone(self)
        elif error.code == "PERMISSION_DENIED":
            self._tell_denied(self)
        elif error.code == "DEADLINE_EXCEEDED" and pull.is_long and self._channel.answered_at < pull.sent:
            self._doubtful(self)

    def _hand_over(self, pull: _Pull, received: Any) -> None:
        queue, sent, until = self.queue, pull.sent, pull.sent + self._lease()
        deliveries = [
            Delivery(queue, one.ack_id, one.message.data, dict(one.message.attributes), sent, until, None)
            for one in received
        ]
        count = len(deliveries)
        if queue.broadcast:
            deliveries = self._only_mine(deliveries)
        self._post(self._arrived, deliveries, count)

    def _arrived(self, deliveries: list[Delivery], count: int) -> None:
        with self._lock:
            self._on_way -= count
        self.stats["messages"] += len(deliveries)
        if deliveries:
            self._deliver(deliveries)

    def _only_mine(self, deliveries: list[Delivery]) -> list[Delivery]:
        mine = [d for d in deliveries if d.attributes.get(MEMBER_ATTRIBUTE, self.queue.member) == self.queue.member]
        if len(mine) < len(deliveries):
            kept = set(map(id, mine))
            for delivery in deliveries:
                if id(delivery) not in kept:
                    self._drop(delivery)
            with self._lock:
                self._want += len(deliveries) - len(mine)  # nobody got them
        return mine

    # pauses

    def _pause(self, seconds: float) -> None:
        self._timer = call_later(seconds, self._resume)

    def _resume(self) -> None:
        with self._lock:  # on a busy machine this may come before `_pause` has noted the timer
            self._timer = None
        self._pump()

    @property
    def is_started(self) -> bool:
        """True between `start` and `stop`."""
        return self._started and self._stopped is None

    def resume(self, *, sure: bool = True) -> None:
        """The subscription was mended: go on at once.

        Pulls that are still out may wait at the one that was deleted, until their own timeout.

        Args:
            sure: It was seen; else `missing` stays until a receive is answered.
        """
        with self._lock:
            if self._stopped is not None:
                return  # which waits for the pulls that are out
            stale, self._pulls = self._pulls, set()
            self._long, self._out, self._pace.busy = None, 0, False
            self._count()
        for pull in stale:
            if pull.call is not None:
                pull.call.cancel()
        self._gone = False
        if sure:
            self.missing = ""
        self.error = ""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self._pump()

    def alive(self) -> None:
        """The server gave a sign of life while a poll found nothing."""
        with self._lock:
            self._alive(time.monotonic())
            self._count()

    # stopping

    def stop(self, grace: float, stopped: Callable[[], None]) -> None:
        """See `Receiver.stop`."""
        with self._lock:
            first = self._stopped is None
            if self._stopped is None:
                self._stopped = []
            self._stopped.append(stopped)
            timer, self._timer = self._timer, None
            callbacks = self._take_stopped()
        if timer is not None:
            timer.cancel()
        for callback in callbacks:
            self._post(callback)
        if first and not callbacks:
            if grace > 0:
                call_later(grace, self._cancel)
            else:
                self._cancel()

    def _take_stopped(self) -> list[Callable[[], None]]:
        if self._stopped is None or self._pulls:
            return []
        self._ended = True
        callbacks, self._stopped = self._stopped, []
        return callbacks

    def _cancel(self) -> None:
        """The grace is over: end what is still out."""
        with self._lock:
            pulls = list(self._pulls)
            self._ended = True
        for pull in pulls:
            if pull.call is not None:
                pull.call.cancel()
        if pulls:
            call_later(CANCEL_TIME, self._give_up)

    def _give_up(self) -> None:
        """A cancelled call that does not end: not waited for."""
        with self._lock:
            self._pulls.clear()
            self._long, self._out = None, 0
            self._count()
            callbacks = self._take_stopped()
        for callback in callbacks:
            self._post(callback)
