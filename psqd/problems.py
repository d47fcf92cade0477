"""What is wrong in a config: where it stands, what is valid, and the nearest valid word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psq.errors import ConfigError

__all__ = ["ConfigProblems", "Problem", "did_you_mean", "shown", "subject", "way"]

#: Most problems that one error tells; a file of a thousand queues can have the same slip a thousand times.
MAX_TOLD = 100


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        line: From 1; 0 where there is no file.
        column: From 1; 0 where there is no file.
        text: What is wrong and what is valid.
    """

    line: int
    column: int
    text: str

    def told(self, file: str) -> str:
        """As a line for people, ``conf/psqd.yaml:6:13: …``."""
        place = f"{file}:{self.line}:{self.column}" if self.line else file
        text = self.text
        if not text.isprintable():  # a value of the file that a hint repeats
            text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        return f"{place}: {text}" if place else text


class ConfigProblems(ConfigError):
    """A config with everything that is wrong in it, a line each, in the order of the file.

    Attributes:
        file: The file's name as it was given.
        problems: What is wrong.
    """

    def __init__(self, file: str, problems: Iterable[Problem]) -> None:
        self.file = file
        self.problems = sorted(set(problems))
        lines = [problem.told(file) for problem in self.problems[:MAX_TOLD]]
        if len(self.problems) > MAX_TOLD:
            lines.append(f"{file}: and {len(self.problems) - MAX_TOLD:,} more")
        super().__init__("\n".join(lines))


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """The nearest valid word as the end of a sentence, else all valid words."""
    words = list(valid)
    near = difflib.get_close_matches(word.strip().lower().replace("-", "_"), words, n=1, cutoff=0.6)
    if near:
        return f"; did you mean `{near[0]}`?"
    return f"; valid: {', '.join(words)}" if words else ""


def shown(value: object) -> str:
    """A value as an error shows it: short, and as it stands in the file."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = ascii(value[:60]) if any(not c.isprintable() for c in value[:60]) else f"'{value[:60]}'"
        return text if len(value) <= 60 else text[:-1] + "…'"
    if isinstance(value, dict):
        return "a section of keys"
    if isinstance(value, (list, tuple)):
        return "a list"
    return str(value)[:60] if not isinstance(value, int) or abs(value) < 10**60 else "a number of more than 60 digits"


def way(parts: Sequence[str | int]) -> str:
    """The way to a section, ``queues.default``, whatever the names are."""
    text = ".".join(str(part) for part in parts)[:120]
    return text if text.isprintable() else ascii(text)[1:-1]


def subject(loc: Sequence[str | int]) -> str:
    """What a problem is about, ```concurrency` in queues.default``."""
    if not loc:
        return "the file"
    parts = list(loc)
    item = ""
    while parts and isinstance(parts[-1], int):
        item = f"item {int(parts.pop()) + 1} of "
    if not parts:
        return f"{item}the file"
    return f"{item}`{way(parts[-1:])}`" + (f" in {way(parts[:-1])}" if len(parts) > 1 else "")
