"""Puts the worker together: command line, config, logs, broker, storage; then runs the daemon."""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from psq.concurrency import native_thread, original
from psq.connect import be_default, broker_of, storage_of
from psq.errors import BrokerError, ConfigError, MissingDependency, StorageError
from psq.functions import Allowed
from psqd import configfile
from psqd.config import Config
from psqd.keeper.link import WorkerEnd
from psqd.worker import logs
from psqd.worker.contexts import check_contexts
from psqd.worker.daemon import REFUSED, Daemon, Parts
from psqd.worker.exhausted import Exhausted
from psqd.worker.stall import Stall
from psqd.worker.trial import Trial, alone
from psqd.worker.watchdog import Watchdog

__all__ = ["main"]

#: Exit code for a bad config, or a module that can't be imported.
BAD_CONFIG = 2
#: Seconds for the interpreter's own end (exit handlers, native threads); then the process ends in any case.
LAST_GASP = 2.0

log = logging.getLogger("psqd")


def main(argv: Sequence[str]) -> int:
    """Run a worker.

    Args:
        argv: ``--config FILE`` or ``--queue module.attribute``; see `_arguments`.

    Returns:
        The exit code: 0 stopped, 1 forced, 2 bad config or import, 3 refused.
    """
    arguments = _arguments(argv)
    _signals()
    if arguments.trial is not None:
        alone()
    link = WorkerEnd.from_environment(os.environ)
    if link is None and arguments.trial is None:
        _complain("psqd.worker is started by psqd (or psqworker), not by hand")
        return BAD_CONFIG
    try:
        parts = _from_queue(arguments, link) if arguments.queue else _from_file(arguments, link)
    except (ConfigError, MissingDependency) as error:
        _complain(str(error))
        return BAD_CONFIG
    except (BrokerError, StorageError) as error:
        _complain(f"psqd: {error}")
        return REFUSED
    Exhausted().install()
    if arguments.trial is not None:
        return _try(parts, arguments.trial)
    parts.argv = argv
    try:
        daemon = Daemon(parts)
        Watchdog(lambda: daemon.stall.last, parts.logs.warn).start()
        code = daemon.run()
    except ConfigError as error:  # the port of http.bind is taken
        log.error("%s", error)
        code = BAD_CONFIG
    parts.logs.close(1.0)
    _end_in_any_case(code)
    return code


def _try(parts: Parts, link: int) -> int:
    """Be the process for suspects."""
    stall = Stall(lambda: None, lambda now: None)
    stall.start()
    Watchdog(lambda: stall.last, parts.logs.warn).start()
    Trial(parts, socket.socket(fileno=link), f"{socket.gethostname()}:{os.getpid()}").serve()
    parts.logs.close(1.0)
    _end_in_any_case(0)
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="psqd.worker")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", help="the YAML file")
    which.add_argument("--queue", help="module.attribute of a psq.Queue, or of a callable that makes one")
    parser.add_argument("--path", action="append", default=[], help="folder put first on sys.path")
    parser.add_argument("--import", dest="imports", action="append", default=[], help="module that tasks may live in")
    parser.add_argument("--concurrency", type=int, default=None, help="tasks at a time")
    parser.add_argument("--trial", type=int, help=argparse.SUPPRESS)  # a descriptor: see psqd.worker.trial
    return parser.parse_args(argv)


def _signals() -> None:
    """Signals are the keeper's. Handled, not ignored: what is ignored is inherited by the tasks' own subprocesses."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _nothing)
    os.register_at_fork(after_in_child=_default_signals)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True, chain=False)


def _nothing(number: int, frame: object) -> None:
    pass


def _default_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _put_on_path(folders: Sequence[str]) -> None:
    first = [os.path.abspath(folder) for folder in folders]
    sys.path[:] = [*first, *(folder for folder in sys.path if folder not in first)]


def _from_file(arguments: argparse.Namespace, link: WorkerEnd | None) -> Parts:
    path = arguments.config
    absolute = os.path.abspath(path)  # a task may change the folder

    def load() -> Config:
        return configfile.load(absolute)

    config = configfile.load(path)
    try:
        return _parts_of(config, arguments, load, link)
    except ConfigError as error:  # mistakes in the file itself have said so, with their line
        raise ConfigError(f"{path}: {error}") from error


def _parts_of(
    config: Config, arguments: argparse.Namespace, load: Callable[[], Config], link: WorkerEnd | None
) -> Parts:
    _put_on_path([*arguments.path, *config.path])
    handle = logs.setup(config.logging, "psqd")
    broker, storage = broker_of(config.broker, config.declares), storage_of(config.storage, config.broker)
    for name in config.queues:
        broker.check_queue_name(name)
    # Before the tasks' modules are imported: `q = psq.Queue()` there means this daemon's
    be_default(broker, storage, config.broker, config.storage, os.environ)
    allowed = _allowed(config)
    allowed.import_all()
    check_contexts(config)
    log.info("psqd %s: broker %s, storage %s", _version(), broker.url, storage.url if storage is not None else "none")
    task_log = logs.TaskLog(config.logging.tasks == "all")
    file = os.path.abspath(arguments.config)
    return Parts(config, load, file, broker, storage, link, handle, task_log, _allowed, allowed)


def _allowed(config: Config) -> Allowed:
    return Allowed(config.imports, task_only=config.task_only)


def _from_queue(arguments: argparse.Namespace, link: WorkerEnd | None) -> Parts:
    paths = arguments.path or [os.getcwd()]
    _put_on_path(paths)
    queue = _find_queue(arguments.queue)
    config = Config.for_queue(queue, imports=arguments.imports, paths=paths, concurrency=arguments.concurrency)
    handle = logs.setup(config.logging, "psqworker")

    def make_allowed(config: Config) -> Allowed:
        return Allowed(config.imports, under=[str(Path(folder).resolve()) for folder in paths])

    allowed = make_allowed(config)
    allowed.import_all()
    broker, storage = queue.client.broker, queue.storage
    log.info(
        "psqworker %s: queue %s, broker %s, storage %s",
        _version(),
        queue.name,
        broker.url,
        storage.url if storage is not None else "none",
    )
    task_log = logs.TaskLog(config.logging.tasks == "all")
    return Parts(
        config, lambda: config, arguments.queue, broker, storage, link, handle, task_log, make_allowed, allowed, queue
    )


def _find_queue(location: str) -> Any:
    """The Queue that ``module.attribute`` names, or that the callable there makes."""
    module, colon, attribute = location.partition(":")
    if not colon:
        module, _, attribute = location.rpartition(".")
    if not module or not attribute:
        raise ConfigError(f"{location!r} does not name a queue: write module.attribute, as in config.q")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
        if not hasattr(found, "enqueue") and callable(found):
            make: Callable[[], Any] = found
            found = make()
    except (Exception, SystemExit) as error:  # the module may raise anything, and so may the callable
        raise ConfigError(f"{location}: {type(error).__name__}: {error}{_where(error)}") from error
    if not hasattr(found, "enqueue") or not hasattr(found, "client"):
        raise ConfigError(f"{location} is a {type(found).__name__}, not a psq.Queue nor a callable that makes one")
    return found


def _where(error: BaseException) -> str:
    """`` (file:line)`` of the innermost frame of the user's own code."""
    frames = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and frame.filename not in (__file__, importlib.__file__)
    ]
    return f" ({frames[-1]})" if frames else ""


def _complain(text: str) -> None:
    """To stderr: there is no log yet."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _version() -> str:
    import psq

    return psq.__version__


def _end_in_any_case(code: int) -> None:
    """Exit handlers of libraries may hang; the tasks are safe by now."""
    for handler in logging.getLogger().handlers:
        try:
            handler.flush()
        except (OSError, ValueError):
            pass
    sleep = original("time", "sleep")

    def end() -> None:
        sleep(LAST_GASP)
        os._exit(code)

    native_thread(end)
