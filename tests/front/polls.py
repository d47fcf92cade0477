"""Pulls: short answers, and long polls whose client went away.

The emulator gives one delivery to each poll that was cancelled and sits on it
for a lease; the service does not. So a poll that the front has sent on is never
cancelled: when its client goes it is an orphan, taken over by the next poll of
that subscription, and what it brings meanwhile is given back (or, by the manner
`strand`, left to lapse as on the service with what was on its way).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from google.pubsub_v1 import types

__all__ = ["Polls"]

#: Seconds after which a long poll is answered with nothing.
HOLD = 90.0

PullRequest: Any = types.PullRequest.pb()
PullResponse: Any = types.PullResponse.pb()
ModifyRequest: Any = types.ModifyAckDeadlineRequest.pb()


class _Poll:
    __slots__ = ("asked", "life", "task")

    def __init__(self, asked: int, life: int, task: asyncio.Task[bytes]) -> None:
        self.asked, self.life, self.task = asked, life, task


class Polls:
    """Pulls of all subscriptions.

    Args:
        send: Sends a Pull to the emulator; its answer.
        give_back: Sends a ModifyAckDeadline.

    Attributes:
        strand: See `Manners.strand`.
        staggered: See `Manners.staggered`.
        now: Long polls out.
        most: The most at a time.
        by: Long polls out, by subscription.
        most_by: The most at a time, by subscription.
        cancelled: Pulls whose client went before the answer.
        stranded: Messages that nobody got, by subscription.
    """

    def __init__(
        self, send: Callable[[bytes], Awaitable[bytes]], give_back: Callable[[bytes], Awaitable[bytes]]
    ) -> None:
        self.strand = self.staggered = False
        self.by: Counter[str] = Counter()
        self.now = 0
        self._send, self._give_back = send, give_back
        self._orphans: dict[str, list[_Poll]] = defaultdict(list)
        self._lives: Counter[str] = Counter()  # how often a subscription was deleted
        self._tasks: set[asyncio.Task[Any]] = set()
        self.reset()

    def reset(self) -> None:
        """Begin to count anew."""
        self.most, self.cancelled = self.now, 0
        self.stranded: Counter[str] = Counter()
        self.most_by: Counter[str] = Counter(self.by)

    async def pull(self, request: Any, most: int) -> bytes:
        """Answer a pull with at most `most` messages."""
        if request.return_immediately:
            poll = self._begin(request.subscription, most, immediately=True)
            return await self._answer(request.subscription, poll)
        subscription = request.subscription
        self.now += 1
        self.by[subscription] += 1
        self.most = max(self.most, self.now)
        self.most_by[subscription] = max(self.most_by[subscription], self.by[subscription])
        try:
            until = time.monotonic() + (random.uniform(0, HOLD) if self.staggered else HOLD)
            orphan = self._adopt(subscription, most)
            if orphan is not None:
                response = await self._answer(subscription, orphan)
                if response:
                    return response  # else the emulator ended it, for it is older than this one
            poll = self._begin(subscription, most, immediately=False)
            return await self._answer(subscription, poll, until - time.monotonic())
        finally:
            self.now -= 1
            self.by[subscription] -= 1
            if not self.by[subscription]:
                del self.by[subscription]

    def gone(self, subscription: str, response: bytes) -> None:
        """The client went away before it could have had this answer."""
        self.cancelled += 1
        self._return(subscription, response)

    def deleted(self, subscription: str) -> None:
        """A subscription is no more: another of its name gets none of its polls."""
        self._lives[subscription] += 1
        for poll in self._orphans.pop(subscription, []):
            poll.task.cancel()

    async def _answer(self, subscription: str, poll: _Poll, hold: float = HOLD) -> bytes:
        try:
            await asyncio.wait([poll.task], timeout=hold)  # which does not cancel it when we are
        except asyncio.CancelledError:
            self.cancelled += 1
            self._abandon(subscription, poll)
            raise
        if not poll.task.done():
            self._abandon(subscription, poll)
            return b""
        return poll.task.result()

    def _abandon(self, subscription: str, poll: _Poll) -> None:
        if poll.life != self._lives[subscription]:  # it waits at one that was deleted
            poll.task.cancel()
            return
        self._orphans[subscription].append(poll)
        poll.task.add_done_callback(lambda task: self._orphan_ended(subscription, poll))

    def _begin(self, subscription: str, most: int, *, immediately: bool) -> _Poll:
        request = PullRequest(subscription=subscription, max_messages=most, return_immediately=immediately)
        return _Poll(most, self._lives[subscription], self._keep(self._send(request.SerializeToString())))

    def _adopt(self, subscription: str, most: int) -> _Poll | None:
        orphans = self._orphans.get(subscription, [])
        for poll in orphans:
            if poll.asked <= most and not poll.task.done():
                orphans.remove(poll)
                return poll
        return None

    def _orphan_ended(self, subscription: str, poll: _Poll) -> None:
        orphans = self._orphans.get(subscription, [])
        if poll not in orphans:
            return  # adopted, or of a subscription that was deleted
        orphans.remove(poll)
        if not poll.task.cancelled() and poll.task.exception() is None:
            self._return(subscription, poll.task.result())

    def _return(self, subscription: str, response: bytes) -> None:
        messages = PullResponse.FromString(response).received_messages
        if not messages:
            return
        self.stranded[subscription] += len(messages)
        if not self.strand:
            ids = [message.ack_id for message in messages]
            request = ModifyRequest(subscription=subscription, ack_ids=ids, ack_deadline_seconds=0)
            task = self._keep(self._give_back(request.SerializeToString()))
            task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def _keep(self, awaitable: Awaitable[bytes]) -> asyncio.Task[bytes]:
        async def run() -> bytes:
            return await awaitable

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
