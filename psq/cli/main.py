"""The `psq` command: what an operator asks about tasks and dead letters."""

from __future__ import annotations

import click

import psq
from psq.cli.dead import dead
from psq.cli.tasks import tasks

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(psq.__version__, prog_name="psq")
def cli() -> None:
    """Look at the tasks of a psq queue and at its dead letters, and requeue these.

    Broker and storage are those of --broker and --storage, else of PSQ_BROKER and PSQ_STORAGE, else the
    embedded default.
    """


cli.add_command(dead)
cli.add_command(tasks)


def main() -> None:
    """Entry point of the console script.

    Exit codes: 0 done; 1 something was not found or not done; 2 bad arguments or URL; 3 broker or storage
    can't be reached or refused us.
    """
    cli.main(prog_name="psq")
