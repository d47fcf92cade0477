"""USR2: every stack and the queues' state, to the log."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

from greenlet import greenlet

if TYPE_CHECKING:
    from psqd.worker.daemon import Daemon

__all__ = ["dump_everything"]

log = logging.getLogger("psqd")

#: Names of greenlets that are told of those with the same stack.
NAMES = 5


def dump_everything(daemon: Daemon) -> None:
    """Write stacks of all threads and greenlets, and a line for each queue.

    Only where they stand: arguments, results and locals may be secrets (gevent's own dump has them).
    """
    for consumer in daemon.consumers.values():
        log.info(
            "queue %s: %s, %d of %d slots run, %d wait, %d received, outcomes %s%s",
            consumer.name,
            consumer.state,
            consumer.running,
            consumer.concurrency,
            consumer.prefetched,
            consumer.counters.received,
            dict(consumer.counters.outcomes),
            f", problem: {consumer.problem}" if consumer.problem else "",
        )
    stacks = "\n".join([*_threads(), *_greenlets()])
    whole = {"psqd_whole": True}  # longer than other lines may be
    daemon.runtime.trials.dump()
    log.info("held: %d deliveries; stacks:\n%s", len(daemon.runtime.held), stacks, extra=whole)


def _threads() -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        yield f"thread {ident:#x} {names.get(ident, '')}\n{_stack(frame)}"


def _greenlets() -> Iterator[str]:
    """Those that have begun and not ended; those that stand at the same place, together."""
    places: dict[str, list[str]] = {}
    for found in gc.get_objects():
        if isinstance(found, greenlet) and found and found.gr_frame is not None:
            name = getattr(found, "name", "") or type(found).__name__
            places.setdefault(_stack(found.gr_frame), []).append(str(name))
    for stack, names in places.items():
        more = ", …" if len(names) > NAMES else ""
        yield f"{len(names)} greenlet{'s'[: len(names) != 1]}: {', '.join(names[:NAMES])}{more}\n{stack}"


def _stack(frame: FrameType) -> str:
    return "".join(traceback.format_stack(frame))
