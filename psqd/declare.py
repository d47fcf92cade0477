"""``psq declare``: a deployer makes what the daemons of a config need, so that these need no right to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from psq.brokers.base import QueueSpec
    from psqd.config import Config

__all__ = ["declare", "specs"]

#: Exit codes, as those of the other commands.
BAD_ARGUMENTS, UNAVAILABLE = 2, 3
#: Queues that are declared together; admin calls have a small quota.
TOGETHER = 10


def specs(config: Config) -> Iterator[QueueSpec]:
    """All that a deployer makes: each queue, and the copies of a broadcast queue's hosts."""
    from psqd.worker.members import first_member

    for name, queue in config.queues.items():
        yield queue.spec(name)
        for host in queue.hosts if queue.broadcast else ():
            member = first_member(host, queue.scope)
            yield replace(queue.spec(name, member), delete_on_close=False, lasting=True)


@click.command()
@click.option("-c", "--config", "file", metavar="FILE", required=True, help="The config of psqd, a YAML file.")
def declare(file: str) -> None:
    """Make the topics and subscriptions of all queues in a psqd config, where they are missing.

    For deployments in which only a deployer may: daemons with `declare: check` or `never`, publishers with
    ?declare=never in their URL. A broadcast queue's copies are made for the machines that its `hosts:` names.
    What exists is left as it is, but for the ack deadline of what psq made.
    """
    from psq.connect import broker_of, storage_of
    from psq.errors import ConfigError, MissingDependency, PsqError
    from psqd.configfile import load

    try:
        config = load(file)
        broker = broker_of(config.broker, "auto" if config.broker.startswith("pubsub:") else "")
        storage = storage_of(config.storage, config.broker)
        for name in config.queues:
            broker.check_queue_name(name)
    except (ConfigError, MissingDependency) as error:
        click.echo(str(error), err=True)
        sys.exit(BAD_ARGUMENTS)
    except PsqError as error:
        click.echo(f"psq: {error}", err=True)
        sys.exit(UNAVAILABLE)
    jobs: list[tuple[str, Callable[[], list[str] | None]]] = []
    for spec in specs(config):
        name = spec.name + f" of {spec.member}" * bool(spec.member)
        jobs.append((name, partial(broker.declare, spec)))
    if storage is None or not storage.can_list:
        for name, queue in config.queues.items():
            jobs.append((f"{name}, dead letters", partial(broker.declare_dead, queue.spec(name))))
    try:
        failed = _do(jobs)
    finally:
        broker.close()
        if storage is not None:
            storage.close()
    if failed:
        sys.exit(UNAVAILABLE)
    click.echo(f"{len(config.queues):,} queues on {broker.url}: all there")


def _do(jobs: Sequence[tuple[str, Callable[[], list[str] | None]]]) -> bool:
    """Do some together and tell what came of each; True where something failed."""
    from psq.errors import BrokerUnavailable, PsqError

    failed = False
    with ThreadPoolExecutor(TOGETHER, "psq declare") as pool:
        for start in range(0, len(jobs), TOGETHER):
            some = jobs[start : start + TOGETHER]
            for (name, _), answer in zip(some, [pool.submit(call) for _, call in some], strict=True):
                try:
                    warnings = answer.result()
                except PsqError as error:
                    failed = True
                    click.echo(f"{name}: {error}", err=True)
                    if isinstance(error, BrokerUnavailable):  # it would say the same of each
                        return True
                else:
                    click.echo(f"{name}: there")
                    for warning in warnings or ():
                        click.echo(f"{name}: warning: {warning}", err=True)
    return failed
