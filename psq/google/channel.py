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

import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from psq.concurrency import Waiter
from psq.errors import PsqError
from psq.fork import reset_after_fork
from psq.google.calls import Call, CallDone, Later, Method, Target, in_hub, spawn
from psq.google.credentials import Identity
from psq.google.errors import CallError, error_of
from psq.google.gate import Gate
from psq.google.loading import FORKED, load_grpc, used
from psq.google.rest import before_forks, rests
from psq.google.silence import Silence

__all__ = ["Call", "CallDone", "Channel", "Method", "Target", "connections_for", "load_grpc"]

log = logging.getLogger("psq")

#: Streams that Google's front allows on one connection.
STREAMS_PER_CONNECTION = 100
#: Pulls beside the long poll of a busy queue at most, and queues that may have so many out at a time: streams
#: for them are reckoned with. Where more queues are busy, each has fewer.
HOT_PULLS, HOT_QUEUES = 15, 20
#: Seconds between pings on a silent connection. Longer than half the shortest long poll (60 s): the
#: emulator answers more frequent ones with GOAWAY too_many_pings.
DEFAULT_KEEPALIVE = 36.0
#: Seconds after which an unanswered ping ends the connection.
KEEPALIVE_TIMEOUT = 15.0
#: Bytes of one answer that may be under way: what gRPC would find out by pings, for 300 MB/s at 25 ms.
WINDOW = 8 << 20
#: Seconds beyond a call's own timeout after which it is taken for dead.
OVERDUE = 5.0


def connections_for(queues: int, hot: int | None = None) -> int:
    """Connections that a channel needs so that no call waits for a free stream.

    Args:
        queues: Long polls at a time.
        hot: Queues that pull with all of their 16 requests at a time; by default at most `HOT_QUEUES`.
    """
    hot = min(queues, HOT_QUEUES) if hot is None else hot
    return (queues + HOT_PULLS * hot + 100) // STREAMS_PER_CONNECTION + 2


class Channel:
    """The channel of one service. Safe from any thread and greenlet; made on first use, and anew after a fork.

    Args:
        target: Where it leads.
        connections: Connections that it may open (`connections_for`); fixed for its life, see `grow`.
        keepalive: Seconds between pings on a silent connection.
        agent: First part of the user agent.

    Attributes:
        answered_at: Monotonic instant of the last sign of life of the server; 0.0 for none.
        accepted_at: Monotonic instant of the last of them that was not about our token.
        calls: Calls started so far.
        renewals: How often it was made anew because it was stuck.
        polls: It has long polls: no fork waits for its calls, see `psq.google.rest`.
        gate: Closed while this process forks.
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
        self.answered_at = self.accepted_at = 0.0
        self.calls = 0
        self.renewals = 0
        self.polls = False
        self.gate = Gate()
        self._keepalive = keepalive
        self._agent = agent
        self._lock = threading.Lock()
        self._channel: Any = None
        self._methods: dict[Method, Any] = {}
        self._identity: Identity | None = None
        self._silence = Silence(lambda: self.answered_at, self.renew)
        self._closed = False
        self._pid = os.getpid()
        self._numbers = itertools.count()
        self._flights: dict[int, float] = {}  # number -> monotonic instant when it is overdue
        reset_after_fork(self)
        rests(self)

    def __len__(self) -> int:
        """Calls in flight."""
        return len(self._flights)

    @property
    def account(self) -> str:
        """Email of the service account that we are, "" where it is not known."""
        identity = self._identity
        return identity.account if identity is not None else ""

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
        if in_hub():  # gRPC starts a thread for a channel that was idle, and waits for it: the hub may not
            later = Later()
            spawn(lambda: later.begin(lambda: self._start(method, request, timeout, done, metadata), done))
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
        number = next(self._numbers)
        self._flights[number] = time.monotonic() + timeout + OVERDUE
        if self.gate.closed:  # looked at after the line above: a fork waits for what it sees there
            self._flights.pop(number, None)
            return self.gate.hold(lambda: self._start(method, request, timeout, done, metadata), done)
        failed: CallError | None = None
        try:
            channel, invoke = self._method(method)
            identity, credentials = self._identity, None
            if identity is not None:
                headers, credentials = identity.of(method.path)
                metadata = (*metadata, *headers) if metadata else headers
            call = invoke.future(request, timeout=timeout, metadata=metadata, credentials=credentials)
        except CallError as error:
            failed = error
        except PsqError as error:  # no library, no credentials
            failed = CallError("FAILED_PRECONDITION", str(error), transient=False, sent=False)
        except ValueError as error:  # the channel was closed between the two lines above
            failed = CallError("UNAVAILABLE", str(error), sent=False, transient=not self._closed)
        except BaseException:  # an interrupt of the caller
            self._flights.pop(number, None)
            raise
        if failed is not None:
            self._flights.pop(number, None)
            done(None, failed)
            return None
        self.calls += 1

        began = time.monotonic()

        def finished(call: Any) -> None:
            if os.getpid() != self._pid:
                return  # a call of the parent, which gRPC ends in its forked children
            self._flights.pop(number, None)
            try:
                self._finished(call, channel, began, 0.0 if method.waits else timeout, done)
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

    def _finished(self, call: Any, channel: Any, began: float, timeout: float, done: CallDone) -> None:
        code = call.code()
        if code.value[0] == 0:
            self.answered_at = self.accepted_at = time.monotonic()
            done(call.result(), None)
            return
        error = error_of(call)
        if error.from_server:
            self.answered_at = time.monotonic()
            if error.code != "UNAUTHENTICATED":
                self.accepted_at = self.answered_at
        if error.code == "UNAUTHENTICATED":
            if self._identity is not None:
                self._identity.refused(began, self.accepted_at)
        elif error.code == "DEADLINE_EXCEEDED" and error.sent:
            if not _connected(channel):
                error.sent = False  # there was no connection to send it on
            elif channel is self._channel:
                self._silence.unanswered(began, timeout)
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
        if not used():
            raise CallError("FAILED_PRECONDITION", FORKED, transient=False, sent=False)
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
            # A ping after each answer, to find out how much the link takes: a quarter of what idle polls cost.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", WINDOW),
            ("grpc.primary_user_agent", self._agent),
        ]
        if self.target.secure:
            self._identity = Identity(grpc, self.target)
            channel = grpc.secure_channel(self.target.address, self._identity.channel_credentials, options=options)
        else:
            channel = grpc.insecure_channel(self.target.address, options=options)
        before_forks()
        return channel

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

    def is_open(self) -> bool:
        """True where gRPC has something of it."""
        return self._channel is not None or self._identity is not None

    def let_go(self) -> None:
        """Close it; it opens again with the next call. Calls in flight end with CANCELLED, which is transient."""
        self._replace()
        self._identity = None

    def reset_after_fork(self) -> None:
        """In a forked child: forget the parent's channel, without touching it."""
        self._lock = threading.Lock()
        self.gate = Gate()
        self._pid = os.getpid()
        if self._channel is not None:
            _left_alone.append((self._channel, self._identity))
        self._channel = self._identity = None
        self._methods = {}
        self._flights = {}
        self.answered_at = self.accepted_at = 0.0

    def abandon(self) -> None:
        """In a forked child: forget the parent's channel for good.

        Under gevent a fork copies greenlets and timers: what the parent had in hand is not to be sent by them, too.
        """
        self._closed = True
        self.reset_after_fork()

    def close(self) -> None:
        """End calls in flight and let go. Idempotent; later calls end with an error."""
        self._closed = True
        self._replace()


def _connected(channel: Any) -> bool:
    """False where gRPC knows that it has no connection. True where it can't be told."""
    try:
        state = channel._channel.check_connectivity_state(False)
    except Exception:  # a private corner of grpcio: without it we say "may have been sent"
        return True
    return bool(state == 2)  # READY


#: Channels of the parents of this process: letting go of one would wait for threads that do not exist here.
_left_alone: list[Any] = []
