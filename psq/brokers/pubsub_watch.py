"""While nothing comes: is the subscription still there, and is the connection still alive?"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from psq.brokers import pubsub_wire as wire
from psq.brokers.pubsub_admin import Admin
from psq.brokers.pubsub_advice import DELETED_TOPIC
from psq.brokers.pubsub_permissions import CONSUME
from psq.brokers.pubsub_receiver import PubSubReceiver
from psq.concurrency import call_later
from psq.google.channel import Channel
from psq.google.errors import CallError
from psq.google.suspicion import Suspicion

__all__ = ["Watch"]

#: Seconds between two looks at a subscription.
LOOK_AFTER = 30.0
#: Looks a second of one process: the quota of administrative calls is shared with the whole project.
LOOKS_A_SECOND = 3
#: With more queues than that they are listed, 1,000 a call, and only what the list makes suspect is looked at.
LIST_FROM, PAGE = 30, 1000
#: Seconds after a denied look, or list, before the next.
DENIED_PAUSE = 300.0
#: Seconds for one look.
LOOK_TIMEOUT = 10.0
#: Pauses between attempts to mend a subscription, seconds.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0

log = logging.getLogger("psq")


class Watch:
    """Looks at subscriptions, mends those that were lost, and has the channel made anew when it is stuck.

    A long poll on an empty queue ends at its own timeout, which no server is
    needed for. So where nothing else was heard meanwhile, a look at the
    subscription is the sign of life: any answer to it, even a refusal.

    Args:
        channel: The service's channel.
        admin: Looks and mends.
    """

    def __init__(self, channel: Channel, admin: Admin) -> None:
        self._channel, self._admin = channel, admin
        self._receivers: weakref.WeakSet[PubSubReceiver] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._probing: list[PubSubReceiver] = []
        self._renewed_at = time.monotonic()
        self._suspicion = Suspicion()
        self._look_at = self._list_at = 0.0  # not before: they were denied
        self._due_at = 0.0  # no receiver is to be looked at before
        self._shortest = math.inf  # of all polls
        self._listing = False
        self._closed = False

    def add(self, receiver: PubSubReceiver) -> int:
        """Watch a receiver, for as long as somebody has it.

        Returns:
            How many are watched.
        """
        self._receivers.add(receiver)
        self._shortest = min(self._shortest, receiver.poll_seconds)
        self._due_at = 0.0
        return len(self._receivers)

    def close(self) -> None:
        """Mend nothing any more."""
        self._closed = True

    # called every second

    def tick(self) -> None:
        """Never blocks; looks at all receivers only when there may be a reason to."""
        now = time.monotonic()
        self._unstick(now)
        if now >= max(self._look_at, self._due_at):
            self._look_around([one for one in list(self._receivers) if one.is_started and not one.mending], now)

    def _look_around(self, receivers: list[PubSubReceiver], now: float) -> None:
        due = [one for one in receivers if now - one.looked_at > LOOK_AFTER]
        if not due:
            self._due_at = min((one.looked_at for one in receivers), default=now) + LOOK_AFTER
            return
        if len(receivers) > LIST_FROM and now >= self._list_at:
            if not self._listing:
                for one in receivers:
                    one.looked_at = now
                self._listing = True
                self._list({one.subscription: one for one in receivers})
            return
        due.sort(key=lambda one: one.looked_at)
        for receiver in due[:LOOKS_A_SECOND]:
            self._look(receiver, _nothing)

    def _unstick(self, now: float) -> None:
        reason = self._doubt(now)
        if self._suspicion.confirmed(reason):
            self._renewed_at = now
            self._channel.renew(reason)

    def _doubt(self, now: float) -> str:
        """Why the connection may be stuck, or ""."""
        overdue = self._channel.overdue(now)
        if overdue:
            return f"{overdue} calls did not end at their own timeouts"
        heard_at = max(self._channel.answered_at, self._renewed_at)
        if now - heard_at <= 2 * self._shortest:
            return ""
        receivers = [one for one in list(self._receivers) if one.requests]
        if receivers:
            silent = now - max(heard_at, min(one.asked_at for one in receivers))
            if silent > 2 * max(one.poll_seconds for one in receivers):
                return f"no answer for {silent:.0f} s"
        return ""

    # signs of life

    def probe(self, receiver: PubSubReceiver) -> None:
        """A poll ended at its own timeout: ask the server for a sign of life. One look at a time serves all."""
        with self._lock:
            self._probing.append(receiver)
            if len(self._probing) > 1:
                return

        def answered(alive: bool) -> None:
            with self._lock:
                waiting, self._probing = self._probing, []
            if alive:
                for one in waiting:
                    one.alive()

        self._look(receiver, answered)

    # looks

    def _look(self, receiver: PubSubReceiver, answered: Callable[[bool], None]) -> None:
        receiver.looked_at = time.monotonic()
        name = receiver.subscription

        def done(found: Any, error: CallError | None) -> None:
            answered(error is None or error.from_server)
            if error is not None:
                if error.code == "PERMISSION_DENIED":
                    self._look_at = time.monotonic() + DENIED_PAUSE
                elif error.code == "NOT_FOUND":
                    self.mend(receiver)
            elif found.topic == DELETED_TOPIC:
                self.mend(receiver)
            elif said := self._admin.unusable(receiver.queue, found):
                self.mend(receiver, said)

        request = wire.GetSubscriptionRequest(subscription=name)
        self._channel.start(
            wire.GET_SUBSCRIPTION, request, LOOK_TIMEOUT, done, metadata=wire.routing("subscription", name)
        )

    def _list(self, receivers: dict[str, PubSubReceiver], page: str = "") -> None:
        project = self._admin.project

        def done(found: Any, error: CallError | None) -> None:
            if error is not None:
                self._listing = False
                if error.code in ("PERMISSION_DENIED", "UNIMPLEMENTED"):
                    self._list_at = time.monotonic() + DENIED_PAUSE
                return
            for one in found.subscriptions:
                receiver = receivers.get(one.name)
                if receiver is not None and (one.topic == DELETED_TOPIC or self._admin.unusable(receiver.queue, one)):
                    self._look(receiver, _nothing)
            if found.next_page_token:
                self._list(receivers, found.next_page_token)
            else:
                self._listing = False

        request = wire.ListSubscriptionsRequest(project=project, page_size=PAGE, page_token=page)
        self._channel.start(
            wire.LIST_SUBSCRIPTIONS, request, LOOK_TIMEOUT, done, metadata=wire.routing("project", project)
        )

    # mending

    def denied(self, receiver: PubSubReceiver) -> None:
        """We may not receive: say once what is missing."""
        receiver.error = f"{receiver.subscription}: {self._admin.missing(CONSUME)}"
        if not receiver.told:
            receiver.told = True
            log.error("nothing is received from %s", receiver.error)

    def mend(self, receiver: PubSubReceiver, why: str = "it, or its topic, was deleted") -> None:
        """Make a subscription anew that is gone, or whose topic is; in a thread or greenlet, until it works.

        What may not be mended is looked at until somebody else has. Where that is not allowed either, the
        receiver tries, with growing pauses.
        """
        with self._lock:
            if receiver.mending or self._closed:
                return
            receiver.mending = True
        again = time.monotonic() - receiver.mended_at < LONGEST_PAUSE
        receiver.mend_pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, receiver.mend_pause * 2)) if again else 0.0
        receiver.missing = receiver.error = f"{receiver.subscription}: {why}"
        if not again:
            log.warning("%s", receiver.missing)
        self._try(receiver, receiver.mend_pause)

    def _try(self, receiver: PubSubReceiver, pause: float, told: str = "") -> None:
        def work() -> None:
            if self._closed or receiver.is_stopping:
                receiver.mending = False
                return
            try:
                sure = self._admin.mend(receiver.queue)
            except Exception as error:
                receiver.missing = receiver.error = said = str(error)
                if said != told:
                    log.error("%s", said)
                self._try(receiver, min(LONGEST_PAUSE, max(FIRST_PAUSE, pause * 2)), said)
            else:
                if sure:
                    log.warning("%s is there again", receiver.subscription)
                receiver.mended_at = time.monotonic()
                receiver.mending = False
                receiver.resume(sure=sure)

        call_later(pause * random.uniform(0.8, 1.2), work)  # it blocks: in a thread, or a greenlet

    @staticmethod
    def quietly(function: Callable[[], None]) -> None:
        """Call something that must not stop what comes after it."""
        try:
            function()
        except Exception as error:
            log.warning("%s", error)


def _nothing(alive: bool) -> None:
    """For looks that nobody waits for."""
