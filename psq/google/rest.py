"""gRPC at rest while this process forks, so that its children can use it.

A forked child has none of gRPC's threads. gRPC has fork handlers for that. They work as they are by default, while
calls are in flight too; switched off, as psq does in a process that gevent has patched, the child's calls hang for
ever, and with GRPC_ENABLE_FORK_SUPPORT=1 half of the children end with code 64 (measured: 9 of 20 lived).

So before a fork new calls wait, those in flight end, and all channels are closed. With none open gRPC has no threads
left, and the child begins anew, whatever the handlers do. Afterwards the parent's calls go on, on new connections.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Protocol
from weakref import WeakSet

from psq.google.calls import in_hub
from psq.google.gate import Gate
from psq.google.loading import at_rest, handlers_off, waits_in_pool

__all__ = ["before_forks", "rests"]

#: Seconds that a fork waits for calls in flight. A call that takes longer is left alone, and so is gRPC: its own
#: handlers are there.
PATIENCE = 2.0
#: The same where these are off and the child could not call at all: longer than a publish takes at most (15 s).
LONG_PATIENCE = 16.0
#: Seconds in which gRPC's threads end once all channels are closed (3 to 16 ms, measured). Those that run on are of
#: others' channels, and no wait would help. Longer where gRPC's own handlers are set to anything, which harms children.
ENDING, LONG_ENDING = 0.25, 2.0
#: Seconds between looks.
LOOK = 0.001
#: What gRPC calls its threads, as far as Linux keeps the names.
THREADS = ("event_engine", "grpc_", "lifeguard", "resolver", "timer_manager")
#: Modules that fork only to exec: their children use no gRPC.
EXECS = frozenset(("gevent.subprocess", "subprocess"))


class Restful(Protocol):
    """What rests: a channel.

    Attributes:
        gate: Closed while it rests.
        polls: It has long polls, which nobody waits for.
    """

    gate: Gate
    polls: bool

    def __len__(self) -> int:
        """Calls in flight."""

    def is_open(self) -> bool:
        """True where gRPC has something of it."""

    def let_go(self) -> None:
        """Close it; it opens again with the next call."""


_channels: WeakSet[Restful] = WeakSet()
#: Held from before a fork until after it.
_forking = threading.Lock()
_forker = 0


def rests(channel: Restful) -> None:
    """Let a channel rest before each fork from now on."""
    _channels.add(channel)


def before_forks() -> None:
    """From now on channels rest before each fork. Idempotent; to be called when gRPC has made a channel.

    Python calls first what was registered last. gRPC's own hook, where it has one, is registered with the first
    channel and holds calls up: they would never end. psq's other hooks take locks (`psq.fork`), and come last.
    """
    global _registered
    with _registering:
        if not _registered:
            _registered = True
            os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


_registering = threading.Lock()
_registered = False


def _before() -> None:
    global _forker
    if _to_exec():
        return
    channels = list(_channels)
    if any(channel.polls for channel in channels):
        at_rest(False)
        return
    if in_hub():  # it can't wait
        at_rest(not any(channel.is_open() for channel in channels) and _grpc_runs() is False)
        return
    deadline = time.monotonic() + (LONG_PATIENCE if handlers_off() else PATIENCE)
    while not _forking.acquire(blocking=False):  # made before the patching, maybe: to wait in it would stop the hub
        if time.monotonic() >= deadline:
            at_rest(False)
            return
        time.sleep(LOOK)
    _forker = threading.get_ident()
    at_rest(False)
    for channel in channels:
        channel.gate.closed = True
    at_rest(_settle(channels, deadline))


def _settle(channels: list[Restful], deadline: float) -> bool:
    """Wait until no call is in flight, close the channels, and wait for gRPC; True where it is at rest."""
    if not any(len(channel) or channel.is_open() for channel in channels):
        return _grpc_runs() is False
    while any(len(channel) for channel in channels):
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK)
    for channel in channels:
        channel.let_go()
    deadline = time.monotonic() + (LONG_ENDING if os.environ.get("GRPC_ENABLE_FORK_SUPPORT") else ENDING)
    while _grpc_runs():
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK)
    return _grpc_runs() is False


def _in_parent() -> None:
    global _forker
    if _forker != threading.get_ident():
        return
    _forker = 0
    _forking.release()
    for channel in list(_channels):
        channel.gate.open()


def _in_child() -> None:
    global _forker, _forking, _registering
    _forker, _forking, _registering = 0, threading.Lock(), threading.Lock()


def _to_exec() -> bool:
    frame = sys._getframe()
    for _ in range(8):
        if frame.f_globals.get("__name__") in EXECS:
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def _grpc_runs() -> bool | None:
    """True where gRPC has threads, None where it can't be told."""
    if waits_in_pool():
        return True
    try:
        numbers = os.listdir("/proc/self/task")
    except OSError:
        return None
    for number in numbers:
        try:
            with open(f"/proc/self/task/{number}/comm") as file:
                name = file.read()
        except OSError:  # it has just ended
            continue
        if name.startswith(THREADS):
            return True
    return False
