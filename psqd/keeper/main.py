"""psqd's parent process: what `psqd` and `psqworker` become once they have read their command line."""

from __future__ import annotations

import contextlib
import faulthandler
import os
from collections.abc import Sequence

from psqd.keeper.clients import Clients
from psqd.keeper.keeper import MISCONFIGURED, Keeper
from psqd.keeper.log import Log
from psqd.keeper.pid_file import PidFile
from psqd.keeper.signals import Signals

__all__ = ["run"]


def run(argv_of_worker: Sequence[str], *, pid_file: str | None = None, title: str = "psqd: keeper") -> int:
    """Keep a worker running until a signal stops it. Blocks; for the main thread of a process of its own.

    Args:
        argv_of_worker: The worker's command line.
        pid_file: Where to write this process's id; None for nowhere.
        title: What `ps` shows, where setproctitle is installed.

    Returns:
        The exit code (docs/signals.md): 0 stopped, 1 forced, 2 bad config or import, 3 refused by broker or storage.
    """
    # gRPC's own fork handlers hang or kill what we start: measured.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    with contextlib.suppress(ImportError):
        from setproctitle import setproctitle

        setproctitle(title)
    with contextlib.suppress(RuntimeError, OSError, ValueError):  # no stderr
        faulthandler.enable()
    log, signals = Log(), Signals()
    signals.install()
    file = PidFile(pid_file) if pid_file else None
    try:
        if file is not None:
            try:
                file.write()
            except OSError as error:
                text = f"the pid file can't be written: {error}"
                log.error(text)
                return MISCONFIGURED
        return Keeper(argv_of_worker, log, signals, Clients()).run()
    finally:
        if file is not None:
            file.remove()
        signals.restore()
        log.close()
