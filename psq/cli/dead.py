"""``psq dead list | show | requeue``."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import click

from psq.brokers.base import DeadLetter
from psq.cli.output import indented, instant, payload_text, printable, table, times, write_json
from psq.cli.places import NOT_DONE, Places, with_places
from psq.dead import Requeued, find, requeue
from psq.errors import MessageInvalid, PublishUnknown
from psq.message import decode

__all__ = ["dead"]


@click.group()
def dead() -> None:
    """Tasks that could never be run, or ran out of retries; kept with their payload."""


@dead.command("list")
@click.option("--queue", metavar="NAME", help="Only of this queue.")
@click.option("--reason", metavar="TEXT", help="Only with this reason, such as 'not found'.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many, newest first.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_places
def list_dead(places: Places, queue: str | None, reason: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, newest first."""
    found = list(islice(_of_reason(places.dead.list_dead(queue, None if reason else limit + 1), reason), limit + 1))
    letters, more = found[:limit], len(found) > limit
    if as_json:
        write_json([_document(letter, payload=False) for letter in letters])
        return
    if not letters:
        click.echo(f"no dead letters ({places.where})", err=True)
        return
    table(
        ("ID", "DIED", "QUEUE", "FUNCTION", "REASON", "ERROR"),
        [(ltr.key, instant(ltr.died_at), ltr.queue, ltr.function, ltr.reason, ltr.error[:200]) for ltr in letters],
    )
    if more:
        click.echo(f"there are more than {limit}: --limit shows them", err=True)


@dead.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID…")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--raw", is_flag=True, help="Only the payload of one dead letter, byte for byte.")
@with_places
def show(places: Places, ids: tuple[str, ...], as_json: bool, raw: bool) -> None:
    """Show dead letters with payload and traceback, by task id or by the ID of the list."""
    found = find(places.dead, ids)
    letters = [letter for each in found.values() for letter in each]
    if raw:
        if len(letters) != 1:
            raise click.UsageError(f"--raw shows one dead letter, and {len(letters)} were found")
        sys.stdout.buffer.write(letters[0].payload)
        return
    if as_json:
        write_json([_document(letter, payload=True) for letter in letters])
    else:
        for letter in letters:
            _show(letter)
    _tell_unknown([id for id, each in found.items() if not each])


@dead.command("requeue")
@click.argument("ids", nargs=-1, metavar="[ID]…")
@click.option("--queue", metavar="NAME", help="All of this queue; with IDs: only those of this queue.")
@click.option("--reason", metavar="TEXT", help="Only with this reason, such as 'not found'.")
@click.option("--all", "everything", is_flag=True, help="All of every queue.")
@click.option("--broadcast", is_flag=True, help="The queue is a broadcast queue: every worker gets the task again.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@with_places
def requeue_dead(
    places: Places,
    ids: tuple[str, ...],
    queue: str | None,
    reason: str | None,
    everything: bool,
    broadcast: bool,
    as_json: bool,
) -> None:
    """Give dead letters another run, with the same task id; attempts begin anew.

    Each is published first and deleted second: interrupted between the two, a task may run twice, and is
    never lost. A payload that can't be read is sent as it is.
    """
    if not ids and not queue and not everything:
        raise click.UsageError("say which: IDs, --queue NAME, or --all")
    if ids and everything:
        raise click.UsageError("IDs and --all exclude each other")
    place, unknown = places.dead, []
    if ids:
        letters: list[DeadLetter] = []
        for id, found in find(place, ids, queue).items():
            if not found:
                unknown.append(id)
            letters += found if len(found) < 2 else _newest(id, found)
        chosen = _of_reason(iter(letters), reason)
    else:
        # Read to the end first: what dies again meanwhile is not requeued again and again.
        chosen = iter(list(_of_reason(place.list_dead(queue), reason)))
    done = list(_told(requeue(chosen, places.broker, place, broadcast=broadcast), quiet=as_json))
    if as_json:
        write_json(
            [
                {
                    "id": one.letter.key,
                    "queue": one.letter.queue,
                    "published": one.published,
                    "error": None if one.error is None else str(one.error),
                }
                for one in done
            ]
        )
    failed = sum(one.error is not None for one in done)
    if not as_json:
        click.echo(f"{len(done) - failed} requeued" + (f", {failed} not" if failed else ""))
    _tell_unknown(unknown)
    if failed:
        sys.exit(NOT_DONE)


def _of_reason(letters: Iterator[DeadLetter], reason: str | None) -> Iterator[DeadLetter]:
    return letters if reason is None else (letter for letter in letters if letter.reason == reason)


def _newest(id: str, letters: Sequence[DeadLetter]) -> list[DeadLetter]:
    newest = max(letters, key=lambda letter: letter.died_at)
    others = ", ".join(letter.key for letter in letters if letter is not newest)
    click.echo(f"{id}: {newest.key} is the newest; {others} stay as they are", err=True)
    return [newest]


def _told(results: Iterator[Requeued], *, quiet: bool) -> Iterator[Requeued]:
    for one in results:
        letter, error = one.letter, one.error
        name = f"{printable(letter.key)} to {printable(letter.queue)}"
        if error is None:
            if not quiet:
                click.echo(f"{name}: requeued")
        elif one.published:
            click.echo(f"{name}: requeued, but not deleted here, so it is still listed: {error}", err=True)
        elif isinstance(error, PublishUnknown):
            click.echo(f"{name}: kept; it may have been requeued: {error}", err=True)
        else:
            click.echo(f"{name}: kept, not requeued: {error}", err=True)
        yield one


def _tell_unknown(ids: Sequence[str]) -> None:
    for id in ids:
        click.echo(f"no dead letter {printable(id)}", err=True)
    if ids:
        sys.exit(NOT_DONE)


def _document(letter: DeadLetter, *, payload: bool) -> dict[str, Any]:
    document = asdict(letter)
    data = document.pop("payload")
    document["task_id"] = document.pop("id")
    document = {"id": letter.key, **document, "deaths": [dict(death) for death in letter.deaths]}
    document["enqueued_at"], document["died_at"] = times(letter.enqueued_at), times(letter.died_at)
    document["payload_bytes"] = len(data)
    if payload:
        try:
            document["payload"] = data.decode()
        except UnicodeDecodeError:
            document["payload_base64"] = base64.b64encode(data).decode()
    else:
        del document["traceback"]
    return document


def _show(letter: DeadLetter) -> None:
    click.secho(printable(letter.key), bold=True)
    facts = {
        "queue": letter.queue,
        "function": letter.function,
        "reason": letter.reason,
        "error": letter.error,
        "enqueued": instant(letter.enqueued_at),
        "died": instant(letter.died_at),
    }
    try:
        message = decode(letter.payload)
    except MessageInvalid as error:
        facts["payload"] = f"{len(letter.payload)} bytes; {error}"
    else:
        facts["run"], facts["attempt"] = str(message.run), str(message.attempt)
    for name, value in facts.items():
        if value:
            click.echo(f"  {name:<9} {printable(value)}")
    for death in letter.deaths:
        at = death.get("at")
        when = instant(at) if isinstance(at, (int, float)) else ""
        click.echo(f"  death     {printable(str(death.get('signal')))} on {printable(str(death.get('host')))} {when}")
    click.echo("  payload\n" + indented(payload_text(letter.payload)), nl=False)
    if letter.traceback:
        click.echo("  traceback\n" + indented(letter.traceback), nl=False)
