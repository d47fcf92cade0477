"""How the commands write: tables for a terminal, plain columns for a pipe, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

__all__ = ["age", "indented", "instant", "json_text", "payload_text", "printable", "table", "times", "write_json"]

_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029]
_ESCAPES = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROLS}
_ONE_LINE = {**_ESCAPES, 0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}
_MANY_LINES = {code: text for code, text in _ESCAPES.items() if code not in (0x09, 0x0A)}
#: Most bytes of a binary payload that are shown.
SHOWN_BYTES = 512


def printable(text: str) -> str:
    """Text from outside on one line, with nothing that could drive the terminal."""
    if not text.isprintable():
        text = text.translate(_ONE_LINE)
    return text.encode("utf-8", "backslashreplace").decode()


def indented(text: str) -> str:
    """Text from outside on lines of their own, indented."""
    lines = text.translate(_MANY_LINES).encode("utf-8", "backslashreplace").decode().rstrip("\n").split("\n")
    return "".join(f"    {line}\n" for line in lines)


def instant(at: float | None) -> str:
    """A Unix time for people, "" for none."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ") if at else ""


def times(at: float | None) -> str | None:
    """A Unix time for programs: ISO 8601, or None."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds") if at else None


def age(seconds: float | None) -> str:
    """A length of time for people."""
    if seconds is None or seconds < 0:
        return ""
    if seconds < 10:
        return f"{seconds:.3f} s"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def payload_text(payload: bytes) -> str:
    """A payload for people: JSON over several lines, other text as it is, the rest in hexadecimal."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        more = f"\n… {len(payload)} bytes in all" if len(payload) > SHOWN_BYTES else ""
        return payload[:SHOWN_BYTES].hex(" ", -4) + more
    return json_text(text)


def json_text(text: str) -> str:
    """JSON over several lines; what is no JSON as it is."""
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def write_json(document: Any) -> None:
    """Write JSON for a program; control characters are escaped by JSON itself."""
    click.echo(json.dumps(document, indent=2))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows: with rich on a terminal, else as columns with two spaces between them, nothing cut off."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, rows)
        return
    widths = [max(len(line[n]) for line in (columns, *rows)) for n in range(len(columns))]
    for line in (columns, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        # ids stay whole, so that they can be copied; Text: what looks like markup is none
        drawn.add_column(column, no_wrap=number == 0, overflow="fold" if number == 0 else "ellipsis")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)
