"""USR2: every stack and the queues' state, to the log."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING

from gevent.util import print_run_info

if TYPE_CHECKING:
    from psqd.worker.daemon import Daemon

__all__ = ["dump_everything"]

log = logging.getLogger("psqd")


def dump_everything(daemon: Daemon) -> None:
    """Write stacks of all threads and greenlets, and a line for each queue."""
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
    stacks = io.StringIO()
    print_run_info(file=stacks)
    whole = {"psqd_whole": True}  # longer than other lines may be
    log.info("held: %d deliveries; stacks:\n%s", len(daemon.runtime.held), stacks.getvalue(), extra=whole)
