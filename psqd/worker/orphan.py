"""What a worker does when its keeper is gone: nobody extends its leases, so it gives all back and ends."""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import TYPE_CHECKING

import gevent
from gevent import get_hub

from psq.concurrency import original

if TYPE_CHECKING:
    from psqd.worker.daemon import Daemon

__all__ = ["Orphan"]

#: Time to give everything back, seconds.
GIVE_BACK = 1.5
#: After that the process ends in any case, by a native thread: the hub may stand still.
LIMIT = 2.0

log = logging.getLogger("psqd")


class Orphan:
    """Ends a worker whose keeper is gone.

    Args:
        daemon: The daemon of this process.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._loop = get_hub().loop
        self._sleep = original("time", "sleep")

    def keeper_gone(self) -> None:
        """Called in the native thread that listened to the keeper; does not return."""
        self._loop.run_callback_threadsafe(gevent.spawn, self._give_back)
        self._sleep(LIMIT)
        _end()

    def _give_back(self) -> None:
        daemon = self._daemon
        daemon.keeper_alive = False
        log.error("the keeper is gone: everything is given back and the worker ends")
        for consumer in daemon.consumers.values():
            consumer.pause("draining")
        daemon.runtime.trials.interrupt("the keeper is gone")
        held = daemon.runtime.held
        held.give_back(held.everything())
        deadline = time.monotonic() + GIVE_BACK
        while len(held) and time.monotonic() < deadline:
            gevent.sleep(0.01)
        daemon.logs.close(LIMIT - GIVE_BACK)
        _end()


def _end() -> None:
    """End this process, and the subprocesses of its tasks: their tasks run elsewhere from now on."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
