"""A background service: one named greenlet that is watched, and started again when it dies."""

from __future__ import annotations

import abc
import logging
import time

import gevent
from gevent.event import Event

__all__ = ["Service"]

#: Seconds before a service that died is started again, and the longest pause.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0

log = logging.getLogger("psqd")


class Service(abc.ABC):
    """Runs `step` again and again in a greenlet of its own; `start` and `stop` are idempotent.

    An error in a step is logged and counted, and the service goes on after a growing pause.

    Attributes:
        name: For logs, status and metrics.
        restarts: How often a step raised.
        last_error: Text of the last error, "" for none.
    """

    #: Seconds between the end of a step and the start of the next.
    interval: float = 1.0

    def __init__(self, name: str) -> None:
        self.name = name
        self.restarts = 0
        self.last_error = ""
        self.last_step_at = 0.0
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._stopping = Event()

    @property
    def alive(self) -> bool:
        """True while its greenlet runs."""
        return self._greenlet is not None and not self._greenlet.dead

    @abc.abstractmethod
    def step(self) -> None:
        """One round; may block its greenlet."""

    def start(self) -> None:
        """Begin. Returns at once."""
        if not self.alive:
            self._stopping.clear()
            self._greenlet = gevent.spawn(self._run)
            self._greenlet.name = f"psqd {self.name}"

    def stop(self, timeout: float = 1.0) -> None:
        """End after the step that runs, at most `timeout` seconds from now, then by force."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            self._stopping.set()
            greenlet.join(timeout)
            greenlet.kill(block=False)

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            try:
                self.step()
                self.last_step_at = time.monotonic()
                pause = FIRST_PAUSE
                wait = self.interval
            except Exception as error:
                self.restarts += 1
                self.last_error = f"{type(error).__name__}: {error}"
                log.exception("%s failed; again in %.1f s", self.name, pause)
                wait, pause = pause, min(LONGEST_PAUSE, pause * 2)
            self._stopping.wait(wait)
