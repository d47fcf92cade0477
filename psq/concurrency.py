"""What differs between plain threads and a process patched by gevent.

psq runs in web apps with threads, in gunicorn's gevent worker, and in psqd.
Calls complete in threads that are not ours (gRPC's, SQLite's writer), so
waiting for them, native threads and timers are asked for here and nowhere else.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Home", "Timer", "Waiter", "call_later", "is_patched", "native_thread", "original", "start_thread"]


def is_patched() -> bool:
    """True when gevent has replaced this process's threading. Imports nothing."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


#: Seconds between wake-ups of a waiter without a timeout, under gevent.
KEEP_ALIVE = 60.0


class Waiter:
    """A one-shot that any native thread may set, and that a thread or a greenlet waits for.

    Make it where it will be waited for: under gevent it belongs to the hub of
    the thread that made it.

    Attributes:
        value: What `set` was given, once it was called.
    """

    __slots__ = ("_called", "_event", "_loop", "_thread_id", "value")

    def __init__(self) -> None:
        self.value: Any = None
        self._called = False
        self._event = threading.Event()  # gevent's own, once patched
        self._loop: Any = None
        self._thread_id = 0
        if is_patched():
            from gevent import get_hub

            self._loop = get_hub().loop
            self._thread_id = _native_ident()

    def set(self, value: Any = None) -> None:
        """Wake the waiter. Never blocks; the first call counts."""
        if self._called:
            return
        self._called = True
        self.value = value
        if self._loop is None or _native_ident() == self._thread_id:
            self._event.set()
        else:  # gevent's primitives belong to their hub's thread
            self._loop.run_callback_threadsafe(self._event.set)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it was set.

        Args:
            timeout: Seconds; None waits for ever.

        Returns:
            True if it was set, False if the time ran out.
        """
        if timeout is not None or self._loop is None:
            return self._event.wait(timeout)
        # A hub that waits for a native thread alone has nothing to do and would end with LoopExit; a timer is
        # something to do.
        while not self._event.wait(KEEP_ALIVE):
            pass
        return True

    def is_set(self) -> bool:
        """True once `set` took effect."""
        return self._event.is_set()


class Home:
    """The hub of the thread that made it: where timers and greenlets of a patched process belong.

    In a process that is not patched, every thread is at home.
    """

    __slots__ = ("_loop", "_thread_id")

    def __init__(self) -> None:
        self._loop: Any = None
        self._thread_id = 0
        if is_patched():
            from gevent import get_hub

            self._loop = get_hub().loop
            self._thread_id = _native_ident()

    def run(self, function: Callable[[], object]) -> None:
        """Call a function at home: at once where this is it, else soon. Never blocks.

        Args:
            function: Must neither block nor raise.
        """
        if self._loop is None or _native_ident() == self._thread_id:
            function()
        else:
            self._loop.run_callback_threadsafe(function)


class Timer(Protocol):
    """What `call_later` gives back."""

    def cancel(self) -> None:
        """Forget the call, if it has not begun."""


class _GreenletTimer:
    __slots__ = ("_greenlet",)

    def __init__(self, greenlet: Any) -> None:
        self._greenlet = greenlet

    def cancel(self) -> None:
        self._greenlet.kill(block=False)


def call_later(seconds: float, function: Callable[[], None]) -> Timer:
    """Call a function after a pause, in a thread or greenlet of its own.

    Safe from any thread or greenlet that is not a native thread of a patched
    process, callbacks of the hub included. Never blocks.

    Args:
        seconds: The pause, counted from now.
        function: Called once, unless cancelled; must not raise.
    """
    if is_patched():
        import gevent

        return _GreenletTimer(gevent.spawn_later(seconds, function))
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()
    return timer


def start_thread(function: Callable[[], None], name: str) -> None:
    """Run a function beside the caller: in a daemon thread, or in a greenlet of a patched process.

    A greenlet, not a patched Thread: a fork copies greenlets, and the child's copy of a Thread that ends
    there is unknown to `threading`.

    Args:
        function: Must not raise.
        name: For stack dumps.
    """
    if is_patched():
        import gevent

        gevent.spawn(function).name = name
    else:
        threading.Thread(target=function, name=name, daemon=True).start()


def original(module: str, name: str) -> Any:
    """A function of the standard library as it was before gevent's patching; itself where nothing is patched."""
    if is_patched():
        from gevent.monkey import get_original

        return get_original(module, name)
    return getattr(__import__(module), name)


_get_ident: Callable[[], int] | None = None


def _native_ident() -> int:
    global _get_ident
    if _get_ident is None:  # looking it up costs ten times as much as calling it
        _get_ident = original("_thread", "get_ident")
    return _get_ident()


def native_thread(function: Callable[[], None]) -> None:
    """Run a function in a real thread, also where gevent has replaced threading.

    The thread does not keep the process alive. It must use native primitives
    only (``_queue.SimpleQueue``, ``_thread.allocate_lock`` taken before the
    patching, pipes), and must not log: a handler's lock may be a greenlet's.

    Args:
        function: Must not raise.
    """
    tracer = threading.gettrace()

    def run() -> None:
        if tracer is not None:  # coverage does not see threads started this way
            sys.settrace(tracer)
        function()

    start = original("_thread", "start_new_thread")
    start(run, ())
