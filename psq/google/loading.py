"""Importing grpc the way this process needs it: plain, patched by gevent, or patched after a fork."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from typing import Any

from psq.concurrency import is_patched
from psq.errors import MissingDependency

__all__ = ["FORKED", "at_rest", "handlers_off", "load_grpc", "used", "waits_in_pool"]

log = logging.getLogger("psq")

_loading = threading.RLock()
_grpc: Any = None
_gevent_ready = False


def load_grpc() -> Any:
    """Import grpc the way this process needs it; the module.

    In a process patched by gevent: no fork handlers (subprocesses of tasks die
    or hang with them) and `init_gevent`, unless ``PSQ_GEVENT=off``. Idempotent,
    and looks again where the process was patched since (gunicorn does so after a fork).

    Raises:
        MissingDependency: grpcio is not installed.
    """
    global _grpc, _gevent_ready
    with _loading:
        patched = is_patched()
        before = "grpc" in sys.modules
        if _grpc is None:
            if patched:
                os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
            try:
                import grpc
            except ImportError as error:
                raise MissingDependency("Pub/Sub and Datastore need grpcio: pip install google-cloud-pubsub") from error
            _grpc = grpc
        if patched and not _gevent_ready:
            _gevent_ready = True
            _use_gevent(_grpc, before)
    return _grpc


def _use_gevent(grpc: Any, before: bool) -> None:
    if os.environ.get("PSQ_GEVENT", "").lower() in ("off", "0", "no"):
        return
    if before and "grpc.experimental.gevent" not in sys.modules and _has_channels(grpc):
        log.warning(
            "grpc was already in use when psq made it work under gevent: a call that was under way stops this whole "
            "process until it has ended; call grpc.experimental.gevent.init_gevent() right after monkey.patch_all()"
        )
    from gevent import get_hub
    from grpc.experimental.gevent import init_gevent

    global _pool
    _pool = get_hub().threadpool
    init_gevent()


def _has_channels(grpc: Any) -> bool:
    """True where somebody in this process has made a channel. Scans all objects: once, and only if grpc came first."""
    return any(isinstance(thing, grpc.Channel) for thing in gc.get_objects())


#: Under gevent: the native threads that gRPC waits in.
_pool: Any = None


def waits_in_pool() -> bool:
    """True where something runs in gevent's native threads: maybe gRPC, which holds a lock when it begins and ends."""
    return _pool is not None and len(_pool) > 0


#: What is said where gRPC can't work.
FORKED = (
    "this process was forked while gRPC was at work in its parent, whose fork handlers are off "
    "(GRPC_ENABLE_FORK_SUPPORT=0, as psq sets it where gevent has patched): its calls would hang. Before the fork, let "
    "calls end and close all other gRPC channels (Google's own clients); see docs/web-apps.md"
)

_used_by = 0
_at_rest = False


def at_rest(yes: bool) -> None:
    """Say, before a fork, whether gRPC has no threads: then the child may use it."""
    global _at_rest
    _at_rest = yes


def handlers_off() -> bool:
    """True where gRPC's fork handlers are off."""
    return os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower() in ("0", "false", "no", "off")


def used() -> bool:
    """Note that this process uses gRPC now; False where it can't: see `FORKED`.

    psq turns the handlers off in processes that gevent has patched. A call
    would not fail there, it would hang for ever.
    """
    global _used_by
    pid = os.getpid()
    if _used_by not in (0, pid) and handlers_off():
        return False
    _used_by = pid
    return True


def _in_child() -> None:
    global _loading, _used_by
    _loading = threading.RLock()
    if _at_rest:
        _used_by = 0


os.register_at_fork(after_in_child=_in_child)
