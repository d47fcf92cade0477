"""`psqd --check`: all that a start would do short of receiving tasks.

Runs in a process of its own, prepared as the worker's is, so that modules are
imported and the broker is spoken to in the same way.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psq.brokers.base import Broker, QueueSpec
    from psq.storages.base import Storage
    from psqd.config import Config

__all__ = ["Check", "main"]

FINE, WRONG = 0, 2
#: Seconds that a broker or a storage has for one answer.
DEFAULT_PATIENCE = 30.0
#: Queues that are looked at together; admin calls have a small quota.
TOGETHER = 10
#: An id that no task has, for a look into the storage; and a claim that nobody makes.
NO_TASK = "psqd-check"


@dataclass
class _Answer:
    """What the broker said about a queue: warnings, and what we lack, None where it can't tell."""

    warnings: list[str]
    lacking: list[str] | None


class Check:
    """Checks a config and what it names.

    Args:
        file: The config.
        paths: Folders put before those of `path:`.
        patience: Seconds that broker and storage have for each answer.

    Attributes:
        problems: What is wrong, a line each.
        warnings: What works and should be known.
        blind: The broker can't tell what we may do there.
    """

    def __init__(self, file: str, paths: Sequence[str] = (), patience: float = DEFAULT_PATIENCE) -> None:
        self.file, self.paths, self.patience = file, list(paths), patience
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.blind = False

    def run(self) -> int:
        """Check everything; blocking, for at most a few times `patience`.

        Returns:
            0: a start would work; 2: `problems` says why not.
        """
        from psq.errors import ConfigError
        from psqd.configfile import load

        try:
            config = load(self.file)
        except ConfigError as error:
            self.problems += str(error).splitlines()
            return WRONG
        self._folders(config)
        self._modules(config)
        self._contexts(config)
        broker = self._broker(config)
        if broker is not None:
            try:
                self._queues(config, broker)
            finally:
                self._close(broker)
        storage = self._storage(config)
        if storage is not None:
            self._close(storage)
        return WRONG if self.problems else FINE

    def wrong(self, key: str, said: object) -> None:
        """Add a problem."""
        self.problems.append(f"{self.file}: {key}{': ' if key else ''}{_one_line(said)}")

    def _folders(self, config: Config) -> None:
        for folder in config.path:
            if not os.path.isdir(folder):
                self.wrong("path", f"there is no folder {folder} (seen from {os.getcwd()})")
        first = [os.path.abspath(folder) for folder in [*self.paths, *config.path]]
        sys.path[:] = [*first, *(folder for folder in sys.path if folder not in first)]
        if config.logging.file:
            parent = os.path.dirname(os.path.abspath(config.logging.file))
            if not os.access(parent, os.W_OK | os.X_OK):
                self.wrong("logging.file", f"{config.logging.file} can't be written: {parent} is missing or not ours")

    def _modules(self, config: Config) -> None:
        from psq.functions import Allowed

        for module in config.imports:
            self._try("", Allowed([module]).import_all)

    def _contexts(self, config: Config) -> None:
        from psqd.worker.contexts import context_of

        for name, queue in config.queues.items():
            if queue.extra_context:
                self._try(f"queues.{name}.extra_context", context_of, queue.extra_context)

    def _broker(self, config: Config) -> Broker | None:
        from psq.connect import broker_of

        broker: Broker | None = self._try("broker", broker_of, config.broker, config.declares)
        if broker is not None:
            for name in config.queues:
                self._try(f"queues.{name}", broker.check_queue_name, name)
        return broker

    def _queues(self, config: Config, broker: Broker) -> None:
        """Declare every queue as a start would, but for the copies of broadcast queues: those are the workers' own.

        Where a deployer makes these, this machine's first one is looked at.
        """
        from psqd.worker.members import first_member

        refused: dict[str, list[str]] = {}
        specs = []
        for name, queue in config.queues.items():
            looked_at = queue.broadcast and config.declares == "check"
            specs.append(queue.spec(name, first_member(socket.gethostname(), queue.scope) if looked_at else ""))
        dead = config.declares == "check" and config.storage == "none"
        with ThreadPoolExecutor(TOGETHER, "psqd check") as pool:
            for start in range(0, len(specs), TOGETHER):
                some = specs[start : start + TOGETHER]
                waiting = [pool.submit(self._declare, broker, spec, dead) for spec in some]
                answers = zip(some, [each.result() for each in waiting], strict=True)
                if not self._told(broker, answers, refused):
                    break
        if self.blind:
            self.warnings.append(f"{self.file}: {broker.url} can't tell what we may do there")
        for said, names in refused.items():  # what is wrong with all of them is told once
            self.wrong(f"queues.{names[0]}", said + (f" (and {len(names) - 1:,} more queues)" if names[1:] else ""))

    def _told(
        self,
        broker: Broker,
        answers: Iterable[tuple[QueueSpec, _Answer | Exception]],
        refused: dict[str, list[str]],
    ) -> bool:
        """Sort what the broker said; False where it would say the same of each queue."""
        from psq.errors import BrokerRefused, BrokerUnavailable, ConfigError

        for spec, answer in answers:
            if isinstance(answer, _Answer):
                self.warnings += [f"{self.file}: queues.{spec.name}: {_one_line(line)}" for line in answer.warnings]
                for line in answer.lacking or ():
                    refused.setdefault(line, []).append(spec.name)
                self.blind = self.blind or answer.lacking is None
            elif isinstance(answer, BrokerUnavailable):
                self.wrong("broker", f"{broker.url} can't be reached: {answer}")
                return False
            elif isinstance(answer, (BrokerRefused, ConfigError)):
                refused.setdefault(_one_line(answer), []).append(spec.name)
            else:
                self.wrong("broker", f"{broker.url}: {type(answer).__name__}: {answer}")
                return False
        return True

    def _declare(self, broker: Broker, spec: QueueSpec, dead: bool) -> _Answer | Exception:
        from psq.errors import BrokerUnavailable

        try:
            if dead:  # a deployer makes their place, too
                self._in_time(lambda: broker.declare_dead(spec))
            return _Answer(
                self._in_time(lambda: broker.declare(spec)),
                self._in_time(lambda: broker.lacks(spec)),
            )
        except TimeoutError:
            return BrokerUnavailable(f"no answer in {self.patience:g} s")
        except Exception as error:  # whatever it is, it is what a start would meet
            return error

    def _storage(self, config: Config) -> Storage | None:
        from psq.connect import storage_of

        storage: Storage | None = self._try("storage", storage_of, config.storage, config.broker)
        if storage is not None:
            known = storage
            try:
                self._in_time(lambda: known.get([NO_TASK]))
                if self._in_time(lambda: known.claim(NO_TASK, NO_TASK, 1.0)):  # may we write?
                    self._in_time(lambda: known.release(NO_TASK, NO_TASK))
            except TimeoutError:
                self.wrong("storage", f"{storage.url} can't be reached: no answer in {self.patience:g} s")
            except Exception as error:
                self.wrong("storage", f"{storage.url}: {type(error).__name__}: {error}")
        return storage

    def _in_time(self, call: Callable[[], Any]) -> Any:
        """The answer of a call that may block for long, or TimeoutError."""
        import gevent

        with gevent.Timeout(self.patience, TimeoutError()):
            return call()

    def _try(self, key: str, call: Callable[..., Any], *args: Any) -> Any:
        """What the call gives, or None with a problem told."""
        try:
            return call(*args)
        except Exception as error:
            from psq.errors import PsqError

            self.wrong(key, error if isinstance(error, PsqError) else f"{type(error).__name__}: {error}")
        except SystemExit as error:  # a module that ends the process while it is imported
            self.wrong(key, f"it calls sys.exit({error.code!r}) while it is imported")
        return None

    def _close(self, part: Broker | Storage) -> None:
        try:
            self._in_time(part.close)
        except Exception as error:
            self.warnings.append(f"{self.file}: closing {part.url}: {_one_line(error)}")

    def lines(self) -> Iterator[str]:
        """What to print."""
        yield from self.problems
        yield from (f"warning: {line}" for line in self.warnings)
        if not self.problems:
            yield f"{self.file}: nothing is wrong"


def _one_line(said: object) -> str:
    return " ".join(str(said).split())


def _prepare() -> None:
    """As the worker does, and in the same order (psqd/worker/__main__.py)."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from gevent import monkey

    monkey.patch_all()
    from grpc.experimental.gevent import init_gevent

    init_gevent()


def main(argv: Sequence[str]) -> int:
    """The process behind `psqd --check`; prints what is wrong and gives the exit code."""
    _prepare()
    parser = argparse.ArgumentParser(prog="psqd --check")
    parser.add_argument("--config", required=True)
    parser.add_argument("--path", action="append", default=[])
    arguments = parser.parse_args(argv)
    check = Check(arguments.config, arguments.path)
    code = check.run()
    for line in check.lines():
        print(line, file=sys.stderr if code else sys.stdout)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # native threads of modules or libraries must not keep a check from ending
