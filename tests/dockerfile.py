"""Reads a Dockerfile, as far as ours go: instructions and their words."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Instruction", "read", "stages"]

#: Every instruction that Docker knows.
KNOWN = {
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER"),
    *("ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
}


@dataclass(frozen=True)
class Instruction:
    """One line: its name, and what follows."""

    name: str
    rest: str

    def words(self) -> list[str]:
        """The words; of a JSON list its members."""
        if self.rest.startswith("["):
            found: list[str] = json.loads(self.rest)
            return found
        return shlex.split(self.rest)


def read(path: Path) -> list[Instruction]:
    """All instructions, in order. Comments and line continuations are taken out."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    text = re.sub(r"\\\n", " ", text)
    found = []
    for line in filter(str.strip, text.splitlines()):
        name, _, rest = line.strip().partition(" ")
        assert name in KNOWN, f"{path.name}: {name} is no instruction"
        found.append(Instruction(name, rest.strip()))
    return found


def stages(instructions: list[Instruction]) -> list[list[Instruction]]:
    """From FROM to FROM; what stands before the first is left out."""
    found: list[list[Instruction]] = []
    for instruction in instructions:
        if instruction.name == "FROM":
            found.append([])
        if found:
            found[-1].append(instruction)
    return found
