"""A channel that keeps calls until a test answers them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from psq.google.calls import CallDone, Method
from psq.google.errors import CallError


class FakeCall:
    def __init__(self, channel: FakeChannel, method: Method, request: Any, timeout: float, done: CallDone) -> None:
        self.channel, self.method, self.request, self.timeout, self._done = channel, method, request, timeout, done
        self.cancelled = self.ended = False

    @property
    def name(self) -> str:
        return self.method.path.rpartition("/")[2]

    def answer(self, response: Any = None) -> None:
        self._end(response, None)

    def fail(self, code: str, details: str = "", **flags: bool) -> None:
        self._end(None, CallError(code, details, **flags))

    def _end(self, response: Any, error: CallError | None) -> None:
        assert not self.ended, "answered twice"
        self.ended = True
        self.channel.open.remove(self)
        if error is None or error.from_server:
            self.channel.answered_at = time.monotonic()
        self._done(response, error)

    def cancel(self) -> bool:
        self.cancelled = True
        if not self.ended and self.channel.cancels:
            self.fail("CANCELLED", "Locally cancelled by application!")
        return True


class FakeChannel:
    """Attributes: open: calls that wait for their answer; all: every call so far."""

    def __init__(self) -> None:
        self.open: list[FakeCall] = []
        self.all: list[FakeCall] = []
        self.answered_at = 0.0
        self.cancels = True
        self.renewed: list[str] = []
        self.late = 0

    def start(
        self,
        method: Method,
        request: Any,
        timeout: float,
        done: CallDone,
        *,
        metadata: Sequence[tuple[str, str]] | None = None,
    ) -> FakeCall:
        call = FakeCall(self, method, request, timeout, done)
        self.open.append(call)
        self.all.append(call)
        return call

    def overdue(self, now: float | None = None) -> int:
        return self.late

    def renew(self, reason: str) -> None:
        self.renewed.append(reason)


def direct(function: Any, *args: Any) -> None:
    function(*args)
