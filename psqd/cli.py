"""The commands `psqd` and `psqworker`: options and exit codes.

The process of a command becomes the keeper, which stays light: nothing here
imports gevent, pydantic, yaml or a Google library. The worker reads the config.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import click

from psqd import __version__, mixture

__all__ = ["psqd", "psqworker"]

#: Exit code for a bad config, command line or import; click's own for a wrong option.
BAD_CONFIG = 2

_EXIT_CODES = """
Exit codes: 0 stopped; 1 forced (the worker had to be killed, or a second TERM); 2 the config, an option or an
import is wrong; 3 the broker or the storage refused us.

Signals: TERM and INT drain and stop, a second one stops at once; HUP reloads the config; USR1 opens the log files
anew; USR2 dumps every stack; TSTP stops receiving and CONT goes on.
"""

_paths = click.option(
    "--path",
    "paths",
    metavar="DIR",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    help="Folder put first on Python's path; may be given several times.",
)
_pid = click.option(
    "--pid", "pid_file", metavar="FILE", type=click.Path(dir_okay=False), help="Write the process id to FILE."
)
_version = click.version_option(__version__, message="%(prog)s %(version)s")


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXIT_CODES)
@click.option("-c", "--config", "file", metavar="FILE", required=True, help="The config, a YAML file.")
@click.option(
    "--check",
    is_flag=True,
    help="Do all that a start would do short of receiving tasks, say what is wrong, and exit with 0 or 2.",
)
@click.option("--print-config", is_flag=True, help="Print every setting with its value, secrets as ***, and exit.")
@_paths
@_pid
@_version
def psqd(file: str, check: bool, print_config: bool, paths: Sequence[str], pid_file: str | None) -> None:
    """Run the tasks of many queues in one process, as the config FILE says."""
    mixture.check("psqd")
    if check and print_config:
        raise click.UsageError("--check and --print-config exclude each other")
    _must_be_readable(file)
    options = [part for folder in paths for part in ("--path", folder)]
    if print_config:
        sys.exit(_print_config(file))
    if check:
        sys.exit(
            subprocess.run([sys.executable, "-m", "psqd.check", "--config", file, *options], check=False).returncode
        )
    _keep(["--config", file, *options], pid_file, "psqd")


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXIT_CODES)
@click.argument("queue", metavar="MODULE.QUEUE")
@_paths
@_pid
@click.option(
    "--import",
    "imports",
    metavar="MODULE",
    multiple=True,
    help="A module whose functions may run, beside those under --path; may be given several times.",
)
@click.option("--concurrency", metavar="N", type=click.IntRange(1, 10_000), help="Most tasks at once; default 100.")
@_version
def psqworker(
    queue: str, paths: Sequence[str], pid_file: str | None, imports: Sequence[str], concurrency: int | None
) -> None:
    """Run the tasks of one queue: a `psq.Queue` object, or a callable that makes one, such as config.q.

    Functions run whose modules lie under --path (default: the working directory) or are named by --import.
    """
    mixture.check("psqworker")
    parts = queue.replace(":", ".", 1).split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise click.BadParameter(
            f"{queue!r} names no queue: write MODULE.QUEUE, as in config.q", param_hint="MODULE.QUEUE"
        )
    options = [part for folder in paths for part in ("--path", folder)]
    options += [part for module in imports for part in ("--import", module)]
    if concurrency is not None:
        options += ["--concurrency", str(concurrency)]
    _keep(["--queue", queue, *options], pid_file, "psqworker")


def _must_be_readable(file: str) -> None:
    try:
        with open(file, "rb") as stream:
            stream.read(1)
    except (OSError, ValueError) as error:
        print(f"{file}: can't be read: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        sys.exit(BAD_CONFIG)


def _keep(arguments: list[str], pid_file: str | None, title: str) -> None:
    """Become the keeper of a worker with these arguments."""
    from psqd.keeper.main import run

    worker = [sys.executable, "-m", "psqd.worker", *arguments]
    sys.exit(run(worker, pid_file=os.path.abspath(pid_file) if pid_file else None, title=f"{title}: keeper"))


def _print_config(file: str) -> int:
    from psq.errors import ConfigError
    from psqd.config_print import as_yaml
    from psqd.configfile import load

    try:
        text = as_yaml(load(file))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return BAD_CONFIG
    print(text, end="")
    return 0
