"""What a channel is given and gives: methods, targets, calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from psq.concurrency import is_patched
from psq.google.errors import CallError

__all__ = ["Call", "CallDone", "Later", "Method", "Target", "in_hub", "spawn"]

#: Called once a call: (response, None) or (None, error).
CallDone = Callable[[Any, "CallError | None"], None]


class Call(Protocol):
    """A call in flight."""

    def cancel(self) -> bool:
        """End it; its callback gets CANCELLED. Never blocks."""


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """A unary method of a service; make each once, it is looked up by identity.

    Attributes:
        path: ``/google.pubsub.v1.Subscriber/Pull``.
        serialize: Request to bytes; None where requests are bytes.
        deserialize: Bytes to response; None where responses stay bytes.
        waits: A long poll: that it ends at its own timeout says nothing of the server.
    """

    path: str
    serialize: Callable[[Any], bytes] | None = None
    deserialize: Callable[[bytes], Any] | None = None
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """Where a channel leads.

    Attributes:
        address: ``host:port``.
        secure: TLS and credentials; False for an emulator.
        credentials: google-auth credentials; None: application default credentials.
        scopes: OAuth scopes.
        audience: The service's own host, for self-signed tokens: ``pubsub.googleapis.com``.
        quota_project: Project that pays for quota, or "".
    """

    address: str
    secure: bool = True
    credentials: Any = None
    scopes: Sequence[str] = ("https://www.googleapis.com/auth/cloud-platform",)
    audience: str = ""
    quota_project: str = ""


class Later:
    """A call that a greenlet begins, since the hub asked for it."""

    __slots__ = ("_call", "_cancelled")

    def __init__(self) -> None:
        self._call: Call | None = None
        self._cancelled = False

    def begin(self, start: Callable[[], Call | None], done: CallDone) -> None:
        """Begin it, unless it was cancelled meanwhile. An error of `start` is the call's: nobody else would hear it."""
        if self._is_cancelled():
            done(None, CallError("CANCELLED", "cancelled before it began", sent=False))
            return
        try:
            self._call = start()
        except Exception as error:
            done(None, CallError("UNKNOWN", f"{type(error).__name__}: {error}", transient=False, sent=False))
            return
        if self._call is not None and self._is_cancelled():
            self._call.cancel()

    def _is_cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> bool:
        """See `Call.cancel`."""
        self._cancelled = True
        return self._call.cancel() if self._call is not None else True


def in_hub() -> bool:
    """True in a callback of gevent's loop, where nothing may wait."""
    if not is_patched():
        return False
    from gevent import getcurrent
    from gevent.hub import Hub

    return isinstance(getcurrent(), Hub)


def spawn(function: Callable[[], None]) -> None:
    """Run a function in a greenlet."""
    import gevent

    gevent.spawn(function)
