"""The keeper's loop: one worker after another, signals, and what each worker leaves behind."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

from psq.brokers.base import LeaseClient
from psqd.keeper.leases import Leases, client_from
from psqd.keeper.link import LinkBroken
from psqd.keeper.log import Log
from psqd.keeper.returns import Returns
from psqd.keeper.signals import Signals, name_of
from psqd.keeper.worker_process import Ended, Pauses, Settings, Worker

__all__ = ["FORCED", "MISCONFIGURED", "REFUSED", "STOPPED", "Keeper"]

#: Exit codes: all stopped in order; the worker had to be killed; bad config or import; the broker or storage said no.
STOPPED, FORCED, MISCONFIGURED, REFUSED = 0, 1, 2, 3
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
#: After a small read of leases the next one waits: they come in bulk, and cost little that way; seconds.
BULK_PAUSE = 0.003
#: A read larger than this is followed by the next one at once, bytes.
BULK = 64 * 1024
#: As the first process of a container: how long a child that we did not start may be somebody's to wait for, seconds.
ORPHAN_PAUSE = 1.0

_MESSAGES = {signal.SIGTSTP: "pause", signal.SIGCONT: "continue", signal.SIGUSR1: "reopen_logs"}


class Keeper:
    """The parent process.

    Args:
        argv: The worker's command line.
        log: Where to tell what happens.
        signals: Installed by the caller.
        make_client: Makes a lease client of the worker's `lease_spec`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: Log,
        signals: Signals,
        make_client: Callable[[Mapping[str, Any]], LeaseClient] = client_from,
    ) -> None:
        self._argv, self._log, self._signals, self._make_client = argv, log, signals, make_client
        self._worker: Worker | None = None
        self._pauses = Pauses()
        self._start_at = 0.0  # of the next worker
        self._was_ready = False  # a worker of ours once was
        self._stopping = False
        self._deadline = inf  # of the drain
        self._code: int | None = None  # our exit code, once it is known
        self._leave_at = inf  # then we leave, whatever is still to be given back
        self._client: LeaseClient | None = None
        self._client_spec: Mapping[str, Any] = {}
        self._old_clients: list[LeaseClient] = []
        self._returns: list[Returns] = []
        self._reload_at, self._reloaded_at = inf, -inf
        self._orphans_at = inf
        self._closed_at = inf
        self._failed, self._tell_at = 0, -inf
        self._bulk = 0

    def run(self) -> int:
        """Keep workers until it is told to stop. For the main thread.

        Returns:
            The exit code.
        """
        self._selector = selectors.DefaultSelector()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self._selector.register(self._signals.fd, selectors.EVENT_READ, self._on_signals)
            self._selector.register(self._wake_fd, selectors.EVENT_READ, self._on_wake)
            return self._loop()
        finally:
            self._close()

    def _loop(self) -> int:
        while True:
            at = self._turn()
            if self._code is not None and self._may_leave():
                return self._code
            timeout = None if at == inf else max(0.0, at - time.monotonic())
            for key, _ in self._selector.select(timeout):
                key.data()
            if self._bulk:
                if self._bulk < BULK:
                    time.sleep(BULK_PAUSE)
                self._bulk = 0

    def _close(self) -> None:
        if self._worker is not None:  # an error of ours: it sees the end of its link, gives back and ends
            self._worker.link.close()
        for client in [*self._old_clients, *([self._client] if self._client else [])]:
            client.close()
        self._selector.close()
        wake_fd, self._wake_fd = self._wake_fd, -1
        os.close(wake_fd)

    # what is due

    def _turn(self) -> float:
        """Do what is due; returns when there is more."""
        now = time.monotonic()
        if now >= self._orphans_at:
            self._reap_orphans()
        if now >= self._reload_at:
            self._reload(now)
        worker = self._worker
        if worker is None:
            if self._code is None:
                if now < self._start_at:
                    return min(self._start_at, self._orphans_at, self._run_returns())
                self._start(now)
                return now
            return min(self._leave_at, self._orphans_at, self._run_returns())
        if now >= self._deadline and not worker.ending:
            self._log.error(f"worker {worker.pid} did not stop in time: it is killed")
            worker.abort("it did not stop in time", now)
        if now >= self._closed_at and not worker.ending:
            self._log.error(f"worker {worker.pid} closed its link to us: it is killed")
            worker.abort("it closed its link", now)
        if not worker.ending and worker.stalled(now):
            still = now - worker.link.heartbeat()
            self._log.error(f"worker {worker.pid} stands still for {still:.0f} s (hub_stall_limit): it is killed")
            worker.abort("its hub stood still", now)
        if now >= worker.kill_at:
            worker.kill()
        at = min(worker.kill_at, self._deadline, self._closed_at, self._reload_at, self._orphans_at)
        if worker.ending:
            at = min(worker.kill_at, self._orphans_at)
        else:
            at = min(at, worker.look_again())
        if worker.leases is not None:
            at = min(at, worker.leases.run())
            self._tell_failing(worker.leases, now)
        return min(at, self._run_returns())

    def _run_returns(self) -> float:
        at = inf
        for returns in list(self._returns):
            at = min(at, returns.run())
            if not returns.pending:
                self._returns.remove(returns)
                left = f", {returns.left} come again by themselves: {returns.last_error}" if returns.left else ""
                self._log.info(f"given back {returns.given_back}, struck {returns.struck}{left}")
        if not self._returns:
            for client in self._old_clients:
                client.close()
            self._old_clients.clear()
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
        self._closed_at = self._deadline = inf
        self._selector.register(worker.link.control_fd, selectors.EVENT_READ, self._on_control)
        self._selector.register(worker.link.leases_fd, selectors.EVENT_READ, self._on_leases)
        self._log.info(f"worker {worker.pid} started")

    def _on_control(self) -> None:
        worker = self._worker
        if worker is None:
            return
        try:
            messages, open_ = worker.link.read_control()
        except LinkBroken as error:
            self._broken(worker, error)
            return
        for message in messages:
            self._obey(worker, message)
        if not open_:
            self._closed(worker, worker.link.control_fd)

    def _obey(self, worker: Worker, message: Mapping[str, Any]) -> None:
        match message.get("op"):
            case "settings":
                self._set(worker, Settings.of(message))
            case "ready":
                worker.ready = self._was_ready = True
                self._log.info(f"worker {worker.pid} is ready")
            case "stopping":
                worker.stopping = True

    def _set(self, worker: Worker, settings: Settings) -> None:
        worker.settings = settings
        self._log.configure(settings.log_format, settings.log_level)
        if worker.leases is None:
            try:
                client = self._client_of(settings.lease_spec)
            except Exception as error:
                self._log.error(f"no leases can be kept: {type(error).__name__}: {error}")
                worker.kill("no leases can be kept")
                self._code = MISCONFIGURED
                return
            worker.leases = Leases(client, self._wake, self._lost)
        if worker.unborn_stop:  # now it may hold something: it stops in order
            worker.unborn_stop, worker.kill_at = False, inf
            self._deadline = time.monotonic() + settings.shutdown_timeout + DRAIN_SLACK
        worker.leases.set_terms(settings.sources)
        worker.leases.apply(worker.early)
        worker.early.clear()

    def _client_of(self, spec: Mapping[str, Any]) -> LeaseClient:
        if self._client is None or spec != self._client_spec:
            client = self._make_client(spec)
            if self._client is not None:
                self._old_clients.append(self._client)  # the last worker's deliveries are given back through it
            self._client, self._client_spec = client, spec
            client.connect()
        return self._client

    def _on_leases(self) -> None:
        worker = self._worker
        if worker is None:
            return
        try:
            frames, size, open_ = worker.link.read_leases()
        except LinkBroken as error:
            self._broken(worker, error)
            return
        self._bulk = size
        if worker.leases is not None:
            worker.leases.apply(frames)
        else:
            worker.early += frames
        if not open_:
            self._closed(worker, worker.link.leases_fd)

    def _lost(self, slots: list[int], keys: list[str]) -> None:
        if self._worker is not None:
            self._worker.link.send({"op": "lost", "slots": slots, "keys": keys})
        self._log.warning(f"{len(slots)} leases are lost: their tasks may run twice")

    def _tell_failing(self, leases: Leases, now: float) -> None:
        failed = leases.requests.failed
        if failed > self._failed and now >= self._tell_at:
            self._log.warning(f"{failed - self._failed} extensions failed, trying again; the last: {leases.last_error}")
            self._failed, self._tell_at = failed, now + TELL_PAUSE

    def _broken(self, worker: Worker, error: LinkBroken) -> None:
        if not worker.ending:
            self._log.error(f"worker {worker.pid} is killed: {error}")
            worker.abort("its link broke", time.monotonic())
        for fd in (worker.link.control_fd, worker.link.leases_fd):
            self._closed(worker, fd)

    def _closed(self, worker: Worker, fd: int) -> None:
        """It ended, and SIGCHLD says how; or it did not, and is of no use any more."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)
        self._closed_at = min(self._closed_at, time.monotonic() + CLOSED_GRACE)

    # the worker's end

    def _ended(self, worker: Worker, ended: Ended) -> None:
        # Others wait for what it held: that first, the log and the next worker after.
        held = self._read_the_rest(worker)
        strikes = not worker.ending and ended.code != 0 and (worker.settings or Settings()).max_strikes > 0
        record = {"signal": str(ended), "host": socket.gethostname(), "at": time.time()} if strikes else None
        backs = struck = unstruck = 0
        if held and worker.leases is not None:
            returns = Returns(worker.leases.client, self._wake)
            backs, struck, unstruck = returns.add(held, worker.link.state, record)
            self._returns.append(returns)
        for fd in (worker.link.control_fd, worker.link.leases_fd):
            self._closed(worker, fd)
        worker.link.close()
        self._worker = None
        self._failed, self._tell_at = 0, -inf
        self._reload_at = self._deadline = self._closed_at = inf
        why = f" ({worker.ending})" if worker.ending else ""
        text = f"worker {worker.pid} ended: {ended}{why}; {backs} deliveries are given back, {struck} struck"
        (self._log.info if ended.code == 0 else self._log.error)(text)
        if unstruck:
            self._log.warning(f"{unstruck} started tasks are given back without a strike: too large, or broadcast")
        self._next(worker, ended)

    def _read_the_rest(self, worker: Worker) -> Mapping[str, Any]:
        self._on_control()  # its settings may be there
        size = 1
        try:
            while size:
                frames, size, _ = worker.link.read_leases()
                if worker.leases is not None:
                    worker.leases.apply(frames)
        except LinkBroken as error:
            self._log.error(f"what worker {worker.pid} wrote last can't be read: {error}")
        return worker.leases.held() if worker.leases is not None else {}

    def _next(self, worker: Worker, ended: Ended) -> None:
        unborn = worker.settings is None
        if self._code is not None:
            self._leave(self._code)
        elif not worker.ready and not self._was_ready and ended.code in (MISCONFIGURED, REFUSED):
            self._leave(ended.code)
        elif self._stopping:
            self._leave(STOPPED if ended.code == 0 or unborn else FORCED)
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

    def _on_wake(self) -> None:
        os.eventfd_read(self._wake_fd)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # a late answer: we are gone
            os.eventfd_write(self._wake_fd, 1)

    def _on_signals(self) -> None:
        now = time.monotonic()
        for number in self._signals.read():
            if number == signal.SIGCHLD:
                self._reap()
                continue
            self._log.info(f"{name_of(number)}")
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop(number, now)
            elif number == signal.SIGHUP:
                self._reload_at = min(self._reload_at, max(now, self._reloaded_at + RELOAD_PAUSE))
            elif number == signal.SIGUSR2:
                self._dump()
            elif self._worker is not None:
                self._worker.link.send({"op": _MESSAGES[signal.Signals(number)]})

    def _reap(self) -> None:
        worker = self._worker
        if worker is not None:
            ended = worker.reap()
            if ended is not None:
                self._ended(worker, ended)
        if os.getpid() == 1:
            self._orphans_at = min(self._orphans_at, time.monotonic() + ORPHAN_PAUSE)

    def _reap_orphans(self) -> None:
        """As the first process of a container: end what others left behind."""
        self._orphans_at = inf
        keep = self._worker.pid if self._worker is not None else 0
        try:
            while True:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if info is None or info.si_pid == keep:  # our worker's end has its own SIGCHLD
                    return
                os.waitpid(info.si_pid, 0)
        except ChildProcessError:
            return

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
        worker.link.send({"op": "drain"})
        if worker.settings is None:  # it holds nothing, and may not listen yet
            worker.signal(signal.SIGTERM)
            worker.unborn_stop, worker.kill_at = True, now + UNBORN_GRACE
        else:
            self._deadline = now + worker.settings.shutdown_timeout + DRAIN_SLACK

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
