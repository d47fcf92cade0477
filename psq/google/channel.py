"""The one channel of a Google service, and calls on it that hold no thread.

Under gevent every *blocking* gRPC call holds a thread of the hub's small pool
while it waits, and so does every channel with a call outstanding: 12 of either
stop a process dead, without an error. So there is one channel a service, with
several connections behind it where many long polls need them (Google's front
allows 100 streams a connection), and each call is a future with a callback.

This module loads nothing of Google's client libraries, so that the keeper can
use it too.
"""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from psq.concurrency import Waiter, is_patched
from psq.errors import BrokerRefused, MissingDependency, PsqError
from psq.fork import reset_after_fork
from psq.google.errors import CallError, error_of

__all__ = ["Call", "CallDone", "Channel", "Method", "Target", "connections_for", "load_grpc"]

log = logging.getLogger("psq")

#: Called once a call: (response, None) or (None, error).
CallDone = Callable[[Any, "CallError | None"], None]

#: Streams that Google's front allows on one connection.
STREAMS_PER_CONNECTION = 100
#: Seconds between pings on a silent connection. Longer than half the shortest long poll (60 s): the
#: emulator answers more frequent ones with GOAWAY too_many_pings.
DEFAULT_KEEPALIVE = 36.0
#: Seconds after which an unanswered ping ends the connection.
KEEPALIVE_TIMEOUT = 15.0
#: Seconds beyond a call's own timeout after which it is taken for dead.
OVERDUE = 5.0
#: Least seconds between two tokens that are thrown away because the server did not take them.
TOKEN_PAUSE = 5.0


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
    """

    path: str
    serialize: Callable[[Any], bytes] | None = None
    deserialize: Callable[[bytes], Any] | None = None


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


def connections_for(queues: int, hot: int | None = None) -> int:
    """Connections that a channel needs so that no call waits for a free stream.

    Args:
        queues: Long polls at a time.
        hot: Queues that pull with all of their 16 requests at a time; by default at most 20 of them.
    """
    hot = min(queues, 20) if hot is None else hot
    return (queues + 15 * hot + 100) // STREAMS_PER_CONNECTION + 2


_loading = threading.RLock()
_grpc: Any = None


def load_grpc() -> Any:
    """Import grpc the way this process needs it; the module.

    In a process patched by gevent: no fork handlers (subprocesses of tasks die
    or hang with them) and `init_gevent`, unless ``PSQ_GEVENT=off``. psqd's
    worker calls this right after patching. Idempotent.

    Raises:
        MissingDependency: grpcio is not installed.
    """
    global _grpc
    if _grpc is None:
        with _loading:
            _grpc = _grpc or _load()
    return _grpc


def _load() -> Any:
    patched = is_patched()
    before = "grpc" in sys.modules
    if patched:
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    try:
        import grpc
    except ImportError as error:
        raise MissingDependency("Pub/Sub and Datastore need grpcio: pip install google-cloud-pubsub") from error
    if patched and os.environ.get("PSQ_GEVENT", "").lower() not in ("off", "0", "no"):
        if before and _has_channels(grpc):
            log.warning(
                "grpc was already in use when psq made it work under gevent: calls on its older channels may "
                "hang; call grpc.experimental.gevent.init_gevent() right after monkey.patch_all()"
            )
        from grpc.experimental.gevent import init_gevent

        init_gevent()
    return grpc


def _has_channels(grpc: Any) -> bool:
    """True where somebody in this process has made a channel. Scans all objects: once, and only if grpc came first."""
    return any(isinstance(thing, grpc.Channel) for thing in gc.get_objects())


class Channel:
    """The channel of one service. Safe from any thread and greenlet; made on first use, and anew after a fork.

    Args:
        target: Where it leads.
        connections: Connections that it may open (`connections_for`); fixed for its life, see `grow`.
        keepalive: Seconds between pings on a silent connection.
        agent: First part of the user agent.

    Attributes:
        answered_at: Monotonic instant of the last sign of life of the server; 0.0 for none.
        calls: Calls started so far.
        renewals: How often it was made anew because it was stuck.
    """

    def __init__(
        self,
        target: Target,
        *,
        connections: int = 2,
        keepalive: float = DEFAULT_KEEPALIVE,
        agent: str = "psq",
    ) -> None:
        self.target = target
        self.connections = connections
        self.answered_at = 0.0
        self.calls = 0
        self.renewals = 0
        self._keepalive = keepalive
        self._agent = agent
        self._lock = threading.Lock()
        self._channel: Any = None
        self._methods: dict[Method, Any] = {}
        self._credentials: Any = None
        self._token_thrown_at = 0.0
        self._closed = False
        self._pid = os.getpid()
        self._numbers = itertools.count()
        self._flights: dict[int, float] = {}  # number -> monotonic instant when it is overdue
        reset_after_fork(self)

    def __len__(self) -> int:
        """Calls in flight."""
        return len(self._flights)

    def start(
        self,
        method: Method,
        request: Any,
        timeout: float,
        done: CallDone,
        *,
        metadata: Sequence[tuple[str, str]] | None = None,
    ) -> Call | None:
        """Begin a call and return at once.

        Only the very first call may take a while: it looks for credentials.

        Args:
            method: The method.
            request: What `method.serialize` takes.
            timeout: Seconds; when they are over the call ends with DEADLINE_EXCEEDED.
            done: Called exactly once with (response, error), in a thread or greenlet of
                gRPC (or in this one, where the call could not be begun); must not block.
            metadata: Headers.

        Returns:
            The call, or None where `done` was called already.
        """
        if _in_hub():  # gRPC starts a thread for a channel that was idle, and waits for it: the hub may not
            later = _Later()
            _spawn(lambda: later.begin(lambda: self._start(method, request, timeout, done, metadata), done))
            return later
        return self._start(method, request, timeout, done, metadata)

    def _start(
        self,
        method: Method,
        request: Any,
        timeout: float,
        done: CallDone,
        metadata: Sequence[tuple[str, str]] | None,
    ) -> Call | None:
        try:
            channel, invoke = self._method(method)
            call = invoke.future(request, timeout=timeout, metadata=metadata)
        except CallError as error:
            done(None, error)
            return None
        except ValueError as error:  # the channel was closed between the two lines above
            done(None, CallError("UNAVAILABLE", str(error), sent=False, transient=not self._closed))
            return None
        self.calls += 1
        number = next(self._numbers)
        self._flights[number] = time.monotonic() + timeout + OVERDUE

        def finished(call: Any) -> None:
            if os.getpid() != self._pid:
                return  # a call of the parent, which gRPC ends in its forked children
            self._flights.pop(number, None)
            try:
                self._finished(call, channel, done)
            except Exception:
                log.exception("a callback of %s failed", method.path)

        call.add_done_callback(finished)
        return call  # type: ignore[no-any-return]

    def call(
        self, method: Method, request: Any, timeout: float, *, metadata: Sequence[tuple[str, str]] | None = None
    ) -> Any:
        """Call and wait: a thread or a greenlet, never a thread of gevent's pool.

        Args:
            method: The method.
            request: What `method.serialize` takes.
            timeout: Seconds.
            metadata: Headers.

        Returns:
            The response.

        Raises:
            CallError: The call ended otherwise.
        """
        waiter = Waiter()
        self.start(method, request, timeout, lambda response, error: waiter.set((response, error)), metadata=metadata)
        if not waiter.wait(timeout + OVERDUE):
            raise CallError("DEADLINE_EXCEEDED", "the call did not end at its own timeout")
        response, error = waiter.value
        if error is not None:
            raise error
        return response

    def _finished(self, call: Any, channel: Any, done: CallDone) -> None:
        code = call.code()
        if code.value[0] == 0:
            self.answered_at = time.monotonic()
            done(call.result(), None)
            return
        error = error_of(call)
        if error.from_server:
            self.answered_at = time.monotonic()
        if error.code == "UNAUTHENTICATED":
            self._throw_token_away()
        elif error.code == "DEADLINE_EXCEEDED" and error.sent and not _connected(channel):
            error.sent = False  # there was no connection to send it on
        elif error.code == "CANCELLED" and self._closed:
            error.transient = False
        done(None, error)

    def _method(self, method: Method) -> tuple[Any, Any]:
        invoke = self._methods.get(method)
        if invoke is not None:
            return self._channel, invoke
        with self._lock:
            if self._closed:
                raise CallError("CANCELLED", "closed", transient=False, sent=False)
            if self._channel is None:
                self._channel = self._open()
            invoke = self._channel.unary_unary(
                method.path, request_serializer=method.serialize, response_deserializer=method.deserialize
            )
            self._methods[method] = invoke
            return self._channel, invoke

    def _open(self) -> Any:
        grpc = load_grpc()
        config = {"connectionScaling": {"maxConnectionsPerSubchannel": self.connections}}
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),  # connections of our own, shared with nobody's channel
            ("grpc.service_config", json.dumps(config)),
            ("grpc.max_connections_per_subchannel_cap", self.connections),
            ("grpc.keepalive_time_ms", int(self._keepalive * 1000)),
            ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT * 1000)),
            ("grpc.max_reconnect_backoff_ms", 10_000),
            ("grpc.primary_user_agent", self._agent),
        ]
        if not self.target.secure:
            return grpc.insecure_channel(self.target.address, options=options)
        return grpc.secure_channel(self.target.address, self._call_credentials(grpc), options=options)

    def _call_credentials(self, grpc: Any) -> Any:
        try:
            import google.auth
            from google.auth import credentials as auth
            from google.auth.transport import grpc as auth_grpc
            from google.auth.transport.requests import Request
        except ImportError as error:
            raise MissingDependency("Google's services need google-auth: pip install google-cloud-pubsub") from error
        target = self.target
        try:
            if target.credentials is None:
                credentials, _ = google.auth.default(scopes=list(target.scopes))
            else:
                credentials = auth.with_scopes_if_required(target.credentials, list(target.scopes))  # type: ignore[no-untyped-call]
        except google.auth.exceptions.GoogleAuthError as error:
            raise BrokerRefused(
                f"no credentials for {target.address}: {error} (gcloud auth application-default login)"
            ) from error
        if target.quota_project and hasattr(credentials, "with_quota_project"):
            credentials = credentials.with_quota_project(target.quota_project)
        # A service account signs its own tokens for Google's own hosts: no token server in between.
        if target.address.partition(":")[0].endswith(".googleapis.com") and hasattr(
            credentials, "with_always_use_jwt_access"
        ):
            credentials = credentials.with_always_use_jwt_access(True)
        self._credentials = credentials
        plugin = auth_grpc.AuthMetadataPlugin(credentials, Request(), default_host=target.audience or None)  # type: ignore[no-untyped-call]
        return grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(), grpc.metadata_call_credentials(plugin)
        )

    def _throw_token_away(self) -> None:
        now = time.monotonic()
        credentials = self._credentials
        if credentials is None or now - self._token_thrown_at < TOKEN_PAUSE:
            return
        self._token_thrown_at = now
        credentials.token = None  # google-auth fetches another for the next call
        credentials.expiry = None

    def overdue(self, now: float | None = None) -> int:
        """Calls that should have ended, by their own timeouts, and did not: gRPC itself is stuck."""
        now = time.monotonic() if now is None else now
        return sum(1 for at in list(self._flights.values()) if at < now)

    def grow(self, connections: int) -> None:
        """Allow more connections; where they are more than before, the channel is made anew.

        Calls in flight end with CANCELLED, which is transient.
        """
        if connections > self.connections:
            self.connections = connections
            self._replace()

    def renew(self, reason: str) -> None:
        """Make the channel anew because it is stuck, and say so. Calls in flight end with CANCELLED."""
        self.renewals += 1
        log.warning("the connection to %s is made anew: %s", self.target.address, reason)
        self._replace()

    def _replace(self) -> None:
        with self._lock:
            old, self._channel = self._channel, None
            self._methods = {}
            self._flights.clear()
        if old is not None:
            old.close()

    def reset_after_fork(self) -> None:
        """In a forked child: forget the parent's channel, without touching it."""
        self._lock = threading.Lock()
        self._pid = os.getpid()
        if self._channel is not None:
            _left_alone.append(self._channel)
        self._channel = None
        self._methods = {}
        self._flights = {}
        self.answered_at = 0.0

    def close(self) -> None:
        """End calls in flight and let go. Idempotent; later calls end with an error."""
        self._closed = True
        self._replace()


class _Later:
    """A call that a greenlet begins, since the hub asked for it."""

    __slots__ = ("_call", "_cancelled")

    def __init__(self) -> None:
        self._call: Call | None = None
        self._cancelled = False

    def begin(self, start: Callable[[], Call | None], done: CallDone) -> None:
        if self._is_cancelled():
            done(None, CallError("CANCELLED", "cancelled before it began", sent=False))
            return
        try:
            self._call = start()
        except PsqError as error:  # no library, no credentials: nobody is there to be told otherwise
            done(None, CallError("FAILED_PRECONDITION", str(error), transient=False, sent=False))
            return
        if self._call is not None and self._is_cancelled():
            self._call.cancel()

    def _is_cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> bool:
        self._cancelled = True
        return self._call.cancel() if self._call is not None else True


def _in_hub() -> bool:
    """True in a callback of gevent's loop, where nothing may wait."""
    if not is_patched():
        return False
    from gevent import getcurrent
    from gevent.hub import Hub

    return isinstance(getcurrent(), Hub)


def _spawn(function: Callable[[], None]) -> None:
    import gevent

    gevent.spawn(function)


def _connected(channel: Any) -> bool:
    """False where gRPC knows that it has no connection. True where it can't be told."""
    try:
        state = channel._channel.check_connectivity_state(False)
    except Exception:  # a private corner of grpcio: without it we say "may have been sent"
        return True
    return bool(state == 2)  # READY


#: Channels of the parents of this process: letting go of one would wait for threads that do not exist here.
_left_alone: list[Any] = []
