"""``psq tasks list | show``."""

from __future__ import annotations

import json
import sys
from itertools import islice
from typing import Any

import click

from psq.cli.output import age, indented, instant, json_text, printable, table, times, write_json
from psq.cli.places import NOT_DONE, Places, with_places
from psq.errors import ConfigError
from psq.storages.base import CANCELLED, FAILED, FINISHED, QUEUED, RETRYING, SCHEDULED, STARTED, TaskRecord

__all__ = ["tasks"]

STATES = (QUEUED, SCHEDULED, STARTED, RETRYING, FINISHED, FAILED, CANCELLED)


@click.group()
def tasks() -> None:
    """Tasks as the storage has them; by default it has those that ended."""


@tasks.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only in this state.")
@click.option("--queue", metavar="NAME", help="Only of this queue.")
@click.option("--function", metavar="NAME", help="Only of this function, module:name.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many, newest first.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_places
def list_tasks(
    places: Places, state: str | None, queue: str | None, function: str | None, limit: int, as_json: bool
) -> None:
    """List tasks, newest first."""
    storage = places.storage
    if not storage.can_list:
        raise ConfigError(f"{storage.url} can't list: `psq tasks show ID` works")
    found = list(islice(storage.find(state=state, queue=queue, function=function, limit=limit + 1), limit + 1))
    records, more = found[:limit], len(found) > limit
    if as_json:
        write_json([_document(record) for record in records])
        return
    if not records:
        click.echo(f"no tasks ({places.where})", err=True)
        return
    table(
        ("ID", "STATE", "QUEUE", "FUNCTION", "ATTEMPT", "ENQUEUED", "RAN", "ERROR"),
        [
            (
                record.id,
                record.state,
                record.queue,
                record.function,
                str(record.attempt) if record.run == 1 else f"{record.attempt} (run {record.run})",
                instant(record.enqueued_at),
                age(_ran(record)),
                _error(record)[:200],
            )
            for record in records
        ],
    )
    if more:
        click.echo(f"there are more than {limit}: --limit shows them", err=True)


@tasks.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID…")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_places
def show(places: Places, ids: tuple[str, ...], as_json: bool) -> None:
    """Show tasks with result or error."""
    found = places.storage.get(ids)
    if as_json:
        write_json([_document(found[id]) for id in ids if id in found])
    else:
        for id in ids:
            if id in found:
                _show(found[id])
    unknown = [id for id in ids if id not in found]
    for id in unknown:
        click.echo(f"no task {printable(id)}: it has not ended, its result has expired, or it never was", err=True)
    if unknown:
        sys.exit(NOT_DONE)


def _ran(record: TaskRecord) -> float | None:
    return record.finished_at - record.started_at if record.finished_at and record.started_at else None


def _error(record: TaskRecord) -> str:
    if not record.error:
        return ""
    return f"{record.error.get('type', '')}: {record.error.get('message', '')}"


def _document(record: TaskRecord) -> dict[str, Any]:
    result: Any = None
    if record.result is not None:
        try:
            result = json.loads(record.result)
        except ValueError:
            result = record.result.decode("utf-8", "backslashreplace")
    return {
        "id": record.id,
        "state": record.state,
        "queue": record.queue,
        "function": record.function,
        "attempt": record.attempt,
        "run": record.run,
        "enqueued_at": times(record.enqueued_at),
        "started_at": times(record.started_at),
        "finished_at": times(record.finished_at),
        "expires_at": times(record.expires_at),
        "worker": record.worker,
        "result": result,
        "error": dict(record.error) if record.error else None,
    }


def _show(record: TaskRecord) -> None:
    click.secho(printable(record.id), bold=True)
    facts = {
        "state": record.state,
        "queue": record.queue,
        "function": record.function,
        "attempt": str(record.attempt),
        "run": str(record.run) if record.run != 1 else "",
        "enqueued": instant(record.enqueued_at),
        "started": instant(record.started_at),
        "ended": instant(record.finished_at),
        "ran": age(_ran(record)),
        "expires": instant(record.expires_at),
        "worker": record.worker,
        "error": _error(record),
    }
    for name, value in facts.items():
        if value:
            click.echo(f"  {name:<9} {printable(value)}")
    if record.result is not None:
        click.echo("  result\n" + indented(json_text(record.result.decode("utf-8", "backslashreplace"))), nl=False)
    if record.error and record.error.get("traceback"):
        click.echo("  traceback\n" + indented(str(record.error["traceback"])), nl=False)
