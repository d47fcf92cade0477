"""One worker process: its exec, what it told us, its end; and the pauses between one and the next."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from psqd.keeper.intake import Intake
from psqd.keeper.leases import Leases
from psqd.keeper.link import NO_MEMORY, KeeperEnd
from psqd.keeper.signals import name_of

__all__ = ["Ended", "Pauses", "Settings", "Worker"]

#: What a worker that is to be killed has to write its stacks (SIGABRT, faulthandler), seconds.
ABORT_GRACE = 1.0
#: A worker that lived so long was healthy: the next one starts without a pause again, seconds.
HEALTHY = 60.0
#: Seconds before a worker that died early is started again: 0, then these, doubled up to the last.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0


class Pauses:
    """Growing pauses between workers that die early."""

    def __init__(self) -> None:
        self._next = 0.0

    def after(self, lived: float) -> float:
        """Seconds to wait after a worker that lived for so many seconds."""
        if lived >= HEALTHY:
            self._next = 0.0
        pause = self._next
        self._next = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * pause))
        return pause


@dataclass(frozen=True, slots=True)
class Settings:
    """What the worker says of its config.

    Attributes:
        shutdown_timeout: Seconds that a drain may take.
        hub_stall_limit: Seconds that the hub may stand still.
        max_strikes: Starts that may end with a worker's death; 0: they are not counted.
        lease_spec: Names the broker's lease client.
        sources: Lengths of the leases of each source.
        log_format: ``text`` or ``json``.
        log_level: ``debug``, ``info`` …
    """

    shutdown_timeout: float = 25.0
    hub_stall_limit: float = 300.0
    max_strikes: int = 3
    lease_spec: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    log_format: str = "text"
    log_level: str = "info"

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Settings:
        """From the worker's message; what it does not say is the default."""
        return cls(**{name: message[name] for name in cls.__slots__ if message.get(name) is not None})


@dataclass(frozen=True, slots=True)
class Ended:
    """How a worker ended.

    Attributes:
        code: Its exit code, or minus the signal.
    """

    code: int

    def __str__(self) -> str:
        if self.code < 0:
            return name_of(-self.code)
        return "out of memory" if self.code == NO_MEMORY else f"exit {self.code}"


class Worker:
    """A worker process and the link to it. Started by `start`.

    Attributes:
        pid: Its process id, and the id of its session and process group.
        link: Our end of the link.
        started: Monotonic instant of its start.
        settings: What it said last, None before it said anything.
        leases: What it holds, once we know its broker.
        intake: Reads what it writes of leases.
        deadline: Monotonic instant at which it must have ended, `inf` for none.
        deadline_is: What it is killed for then.
        ready: It said that it serves.
        stopping: It said that it stops.
        unborn_stop: It was told to stop before it told its settings.
        ending: Why we end it, "" while we don't.
        kill_at: Monotonic instant of the SIGKILL that follows, `inf` for none.
        trials: Ids of the processes that it has for suspects, each in a group of its own.
    """

    def __init__(self, process: subprocess.Popen[bytes], link: KeeperEnd, now: float) -> None:
        self._process = process
        self.pid, self.link, self.started = process.pid, link, now
        self.settings: Settings | None = None
        self.leases: Leases | None = None
        self.intake: Intake
        self.deadline, self.deadline_is = inf, ""
        self._early: list[tuple[Any, ...]] = []
        self.ready = self.stopping = self.unborn_stop = False
        self.ending = ""
        self.kill_at = inf
        self.trials: set[int] = set()
        self._suspect, self._suspected_at = -inf, -inf

    @classmethod
    def start(cls, argv: Sequence[str], now: float) -> Worker:
        """Start a worker in a session of its own: a kill of our process group must not hit it too.

        Raises:
            OSError: It can't be started.
        """
        link = KeeperEnd()
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=link.worker_fds,
                env={**os.environ, **link.environment},
            )
        except BaseException:
            link.close()
            raise
        link.close_worker_side()
        return cls(process, link, now)

    def apply(self, frames: Sequence[tuple[Any, ...]]) -> None:
        """What it wrote of leases; kept until we know its broker."""
        if self.leases is None:
            self._early += frames
        elif self._early:
            early, self._early = self._early, []
            self.leases.apply([*early, *frames])
        else:
            self.leases.apply(frames)

    def must_end(self, at: float, why: str) -> None:
        """The earliest deadline counts."""
        if at < self.deadline:
            self.deadline, self.deadline_is = at, why

    def signal(self, number: int) -> None:
        """Send it a signal, unless it was reaped: then the id may be somebody else's."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def abort(self, why: str, now: float) -> None:
        """End it, stacks first. Idempotent: the first reason counts."""
        if not self.ending:
            self.ending = why
            self.kill_at = now + ABORT_GRACE
            self.signal(signal.SIGABRT)
            self.signal(signal.SIGCONT)  # a stopped one would not get to it

    def kill(self, why: str = "") -> None:
        """End it now, and what its tasks have started: they will be started again elsewhere."""
        self.ending = self.ending or why
        self.kill_at = inf
        self._kill_group()
        self.signal(signal.SIGKILL)  # before its exec, it may not have its group yet

    def reap(self) -> Ended | None:
        """How it ended, None while it lives (and once that was told).

        What its tasks had started ends with it, unless it ended well.
        """
        if self._process.returncode is not None:
            return None
        try:
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # somebody else reaped it; how it ended is lost
            self._process.returncode = -signal.SIGKILL
            return Ended(-signal.SIGKILL)
        if info is None:
            return None
        well = info.si_code == os.CLD_EXITED and info.si_status == 0
        if not well:  # while it is a zombie, the id of its group can't be anybody else's
            self._kill_group()
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._process.returncode = code
        return Ended(code)

    def _kill_group(self) -> None:
        if self._process.returncode is not None:
            return
        for pid in self.trials:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # Of the worker's session, or by now it is somebody else's id
                if os.getsid(pid) == self.pid:
                    os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def stalled(self, now: float, confirm: float = 1.0) -> bool:
        """True when its hub stands still for longer than it may.

        Suspected a little before, and seen again then, so that neither the end of a
        pause of the whole machine nor of both processes (SIGSTOP, a suspended VM) looks like one.
        """
        beat = self.link.heartbeat()
        if now - beat <= self.stall_limit - confirm:
            return False
        if beat != self._suspect:
            self._suspect, self._suspected_at = beat, now
            return False
        return now - self._suspected_at >= confirm and now - beat > self.stall_limit

    def look_again(self, confirm: float = 1.0) -> float:
        """Monotonic instant at which `stalled` may have changed."""
        beat = self.link.heartbeat()
        if beat == self._suspect:
            return max(self._suspected_at + confirm, beat + self.stall_limit + 0.001)
        return beat + self.stall_limit - confirm + 0.001

    @property
    def stall_limit(self) -> float:
        """Seconds that its hub may stand still."""
        return (self.settings or Settings()).hub_stall_limit
