"""The keeper's loop: one worker after another, signals, and what each worker leaves behind."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from psqd.keeper.clients import Clients
from psqd.keeper.intake import Intake
from psqd.keeper.leases import Leases
from psqd.keeper.link import LinkBroken
from psqd.keeper.log import Log
from psqd.keeper.loop import Loop
from psqd.keeper.orphans import Orphans
from psqd.keeper.returns import Returns
from psqd.keeper.signals import Signals, name_of
from psqd.keeper.worker_process import Ended, Pauses, Settings, Worker

__all__ = ["FORCED", "MISCONFIGURED", "REFUSED", "STOPPED", "Keeper"]

#: Exit codes: all stopped in order; the worker had to be killed; bad config or import; the broker or storage said no.
STOPPED, FORCED, MISCONFIGURED, REFUSED = 0, 1, 2, 3
#: What they say of a daemon that never served.
MEANINGS = {
    MISCONFIGURED: "the config, an option or an import is wrong",
    REFUSED: "the broker or the storage refused us",
}
#: What a worker may take beyond `shutdown_timeout` to give back, write results and go, seconds.
DRAIN_SLACK = 2.0
#: A worker that has not told its settings holds nothing: it has so long to stop, seconds.
UNBORN_GRACE = 2.0
#: How long the keeper waits at its end for what is still to be given back, seconds.
LAST_GRACE = 2.0
#: A worker that closed its link and does not end is ended after this, seconds.
CLOSED_GRACE = 2.0
#: Seconds between two warnings that leases can't be extended.
TELL_PAUSE = 30.0
#: SIGHUPs that come faster than this are one reload, seconds.
RELOAD_PAUSE = 0.05

#: Seconds for the line that a worker is killed to be written; a reader that does not read must not hold up the kill.
SETTLE = 0.1
#: What it is killed for at the end of a drain.
NOT_IN_TIME = "it did not stop in time (shutdown_timeout)"


class Keeper:
    """The parent process.

    Args:
        argv: The worker's command line.
        log: Where to tell what happens.
        signals: Installed by the caller.
        clients: Make lease clients of the worker's `lease_spec`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: Log,
        signals: Signals,
        clients: Clients,
    ) -> None:
        self._argv, self._log, self._signals, self._clients = argv, log, signals, clients
        self._loop = Loop()
        self._worker: Worker | None = None
        self._pauses = Pauses()
        self._start_at = 0.0  # of the next worker
        self._was_ready = False  # a worker of ours once was
        self._stopping = False
        self._code: int | None = None  # our exit code, once it is known
        self._leave_at = inf  # then we leave, whatever is still to be given back
        self._returns: list[Returns] = []
        self._reload_at, self._reloaded_at = inf, -inf
        self._orphans = Orphans()
        self._paused = False
        self._failed, self._tell_at = 0, -inf

    def run(self) -> int:
        """Keep workers until it is told to stop. For the main thread.

        Returns:
            The exit code.
        """
        self._loop.watch(self._signals.fd, self._on_signals)
        try:
            while True:
                at = self._turn()
                if self._code is not None and self._may_leave():
                    return self._code
                self._loop.wait(at)
        finally:
            if self._worker is not None:  # an error of ours: it sees the end of its link, gives back and ends
                self._worker.link.close()
            self._clients.close()
            self._loop.close()

    # what is due

    def _turn(self) -> float:
        """Do what is due; returns when there is more."""
        now = time.monotonic()
        worker = self._worker
        if now >= self._reload_at:
            self._reload(now)
        at = min(self._reload_at, self._orphans.run(now, worker.pid if worker is not None else 0), self._run_returns())
        if worker is not None:
            self._look_after(worker, now)
            at = min(at, worker.kill_at, worker.intake.run(now))
            if not worker.ending:
                at = min(at, worker.deadline, worker.look_again())
            if worker.leases is not None:
                at = min(at, worker.leases.run())
                self._tell_failing(worker.leases, now)
        elif self._code is not None:
            at = min(at, self._leave_at)
        elif now < self._start_at:
            at = min(at, self._start_at)
        else:
            self._start(now)
            at = now
        return at

    def _look_after(self, worker: Worker, now: float) -> None:
        if not worker.ending:
            if now >= worker.deadline:
                self._end(worker, worker.deadline_is, now)
            elif worker.stalled(now):
                still = now - worker.link.heartbeat()
                self._end(worker, f"its hub stood still for {still:.0f} s (hub_stall_limit)", now)
        if now >= worker.kill_at:
            worker.kill()

    def _end(self, worker: Worker, why: str, now: float) -> None:
        if not worker.ending:
            self._log.error(f"worker {worker.pid} is killed: {why}")
            self._log.settle(SETTLE)  # or the line stands amid the stacks, which go to the same stderr
            worker.abort(why, now)

    def _run_returns(self) -> float:
        at = inf
        for returns in list(self._returns):
            at = min(at, returns.run())
            if not returns.pending:
                self._returns.remove(returns)
                left = f", {returns.left} come again by themselves: {returns.last_error}" if returns.left else ""
                self._log.info(f"given back {returns.given_back}, struck {returns.struck}{left}")
        if not self._returns:
            self._clients.close_old()
        return at

    def _may_leave(self) -> bool:
        if self._worker is not None:
            return False
        pending = sum(returns.pending for returns in self._returns)
        if pending and time.monotonic() < self._leave_at:
            return False
        if pending:
            self._log.warning(f"{pending} deliveries could not be given back in time: they come again by themselves")
        return True

    # the worker's life

    def _start(self, now: float) -> None:
        try:
            worker = Worker.start(self._argv, now)
        except OSError as error:
            self._log.error(f"the worker can't be started: {error}")
            if self._was_ready:
                self._start_at = now + self._pauses.after(0.0)
            else:
                self._leave(MISCONFIGURED)
            return
        self._worker = worker
        self._loop.watch(worker.link.control_fd, self._on_control)
        worker.intake = Intake(self._loop, worker.link, worker.apply, self._link_ended)
        self._log.info(f"worker {worker.pid} started")

    def _on_control(self) -> None:
        worker = self._worker
        if worker is None:
            return
        try:
            messages, open_ = worker.link.read_control()
        except LinkBroken as error:
            messages, open_ = [], False
            self._end(worker, str(error), time.monotonic())
        for message in messages:
            self._obey(worker, message)
        if not open_:
            self._loop.unwatch(worker.link.control_fd)
            self._link_ended(None)

    def _obey(self, worker: Worker, message: Mapping[str, Any]) -> None:
        match message.get("op"):
            case "settings":
                self._set(worker, Settings.of(message))
            case "ready":
                worker.ready = self._was_ready = True
                self._log.info(f"worker {worker.pid} is ready")
            case "stopping":
                worker.stopping = True
            case "trial":
                (worker.trials.add if message.get("runs") else worker.trials.discard)(int(message["pid"]))

    def _set(self, worker: Worker, settings: Settings) -> None:
        worker.settings = settings
        self._log.configure(settings.log_format, settings.log_level)
        if worker.leases is None:
            try:
                client = self._clients.of(settings.lease_spec)
            except Exception as error:
                self._log.error(f"no leases can be kept: {type(error).__name__}: {error}")
                worker.kill("no leases can be kept")
                self._code = MISCONFIGURED
                return
            worker.leases = Leases(client, self._loop.wake, self._lost)
            if self._paused:  # before it receives anything
                worker.link.send({"op": "pause"})
        if worker.unborn_stop:  # now it may hold something: it stops in order
            worker.unborn_stop, worker.kill_at = False, inf
            worker.must_end(time.monotonic() + settings.shutdown_timeout + DRAIN_SLACK, NOT_IN_TIME)
        worker.leases.set_terms(settings.sources)
        worker.apply(())

    def _lost(self, slots: list[int], keys: list[str]) -> None:
        if self._worker is not None:
            self._worker.link.send({"op": "lost", "slots": slots, "keys": keys})
        self._log.warning(f"{len(slots)} leases are lost: their tasks may run twice")

    def _tell_failing(self, leases: Leases, now: float) -> None:
        failed = leases.requests.failed
        if failed > self._failed and now >= self._tell_at:
            self._log.warning(f"{failed - self._failed} extensions failed, trying again; the last: {leases.last_error}")
            self._failed, self._tell_at = failed, now + TELL_PAUSE

    def _link_ended(self, error: LinkBroken | None) -> None:
        """The worker has ended, and SIGCHLD says how; or it has not, and is of no use any more."""
        worker, now = self._worker, time.monotonic()
        if worker is not None:
            worker.must_end(now + CLOSED_GRACE, "it closed its link to us")
            if error is not None:
                self._end(worker, str(error), now)

    # the worker's end

    def _ended(self, worker: Worker, ended: Ended) -> None:
        # Others wait for what it held: that first, the log and the next worker after.
        self._on_control()  # its settings may be there
        worker.intake.rest()
        by_itself = ended.code == 0 and worker.stopping  # a task that calls os._exit(0) has killed it, too
        strikes = not worker.ending and not by_itself and (worker.settings or Settings()).max_strikes > 0
        record = {"signal": str(ended), "host": socket.gethostname(), "at": time.time()} if strikes else None
        backs = struck = unstruck = 0
        if worker.leases is not None and len(worker.leases):
            returns = Returns(worker.leases.client, self._loop.wake)
            backs, struck, unstruck = returns.add(
                worker.leases.held(), worker.link.state, record, worker.link.last_started()
            )
            self._returns.append(returns)
        self._loop.unwatch(worker.link.control_fd)
        worker.link.close()
        self._worker = None
        self._failed, self._tell_at, self._reload_at = 0, -inf, inf
        why = f" ({worker.ending})" if worker.ending else ""
        text = f"worker {worker.pid} ended: {ended}{why}; {backs} deliveries are given back, {struck} struck"
        (self._log.info if by_itself or worker.unborn_stop else self._log.error)(text)
        if unstruck:
            self._log.warning(f"{unstruck} started tasks are given back without a strike: too large")
        self._next(worker, ended, backs + struck)

    def _next(self, worker: Worker, ended: Ended, held: int) -> None:
        if self._code is not None:
            self._leave(self._code)
        elif not worker.ready and not self._was_ready and ended.code in (MISCONFIGURED, REFUSED):
            self._log.error(f"ends with exit code {ended.code}: {MEANINGS[ended.code]}; the worker has said which")
            self._leave(ended.code)
        elif self._stopping:
            # One that had let go of everything and died in its exit handlers was not forced to anything.
            done = ended.code == 0 or worker.settings is None or (worker.stopping and not held)
            self._leave(STOPPED if done else FORCED)
        elif worker.stopping and ended.code == 0:
            self._leave(STOPPED)
        else:
            now = time.monotonic()
            pause = self._pauses.after(now - worker.started)
            self._start_at = now + pause
            self._log.info(f"a new worker is started{f' in {pause:.1f} s' if pause else ''}")

    def _leave(self, code: int) -> None:
        self._code = code
        self._leave_at = time.monotonic() + LAST_GRACE

    # signals

    def _on_signals(self) -> None:
        now = time.monotonic()
        for number in self._signals.read():
            if number == signal.SIGCHLD:
                self._reap()
                continue
            self._log.info(name_of(number))
            match number:
                case signal.SIGTERM | signal.SIGINT:
                    self._stop(number, now)
                case signal.SIGHUP:
                    self._reload_at = min(self._reload_at, max(now, self._reloaded_at + RELOAD_PAUSE))
                case signal.SIGUSR1:
                    self._send("reopen_logs")
                case signal.SIGUSR2:
                    self._dump()
                case signal.SIGTSTP:
                    self._paused = True
                    self._send("pause")
                case signal.SIGCONT:
                    self._paused = False
                    self._send("continue")

    def _send(self, op: str) -> None:
        if self._worker is not None:
            self._worker.link.send({"op": op})

    def _reap(self) -> None:
        worker = self._worker
        if worker is not None:
            ended = worker.reap()
            if ended is not None:
                self._ended(worker, ended)
        self._orphans.child_ended(time.monotonic())

    def _stop(self, number: int, now: float) -> None:
        worker = self._worker
        if self._stopping:
            self._code = FORCED
            self._leave_at = now  # a third one does not wait for what is given back
            if worker is not None:
                self._leave_at = inf
                worker.kill(f"a second {name_of(number)}")
            return
        self._stopping = True
        self._reload_at = inf
        if worker is None:
            self._leave(STOPPED)
            return
        worker.link.send({"op": "drain", "at": now})
        if worker.settings is None:  # it holds nothing, and may not listen yet
            worker.signal(signal.SIGTERM)
            worker.unborn_stop, worker.kill_at = True, now + UNBORN_GRACE
        else:
            worker.must_end(now + worker.settings.shutdown_timeout + DRAIN_SLACK, NOT_IN_TIME)

    def _reload(self, now: float) -> None:
        self._reload_at, self._reloaded_at = inf, now
        if self._stopping:
            return
        if self._worker is not None:
            self._worker.link.send({"op": "reload"})
        else:
            self._start_at = now  # somebody mended something: no pause

    def _dump(self) -> None:
        worker = self._worker
        if worker is None:
            self._log.info("no worker runs")
            return
        worker.link.send({"op": "dump"})
        if worker.settings is not None:  # by then its handler is there
            worker.signal(signal.SIGUSR2)
        beat = time.monotonic() - worker.link.heartbeat()
        leases = worker.leases
        held = leases.counts() if leases is not None else {}
        counts = ", ".join(f"{name} {count}" for name, count in sorted(held.items())) or "nothing"
        requests = f"; {leases.in_flight} extensions in flight, {leases.requests}" if leases is not None else ""
        self._log.info(f"worker {worker.pid}: last heartbeat {beat:.2f} s ago; holds {counts}{requests}")
