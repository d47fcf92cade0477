"""Refuses to run on a mixture of this psq and the one of 2019 that owns the same package name on PyPI.

Installing the old `psq` over ours, or removing it afterwards, leaves a folder
with files of both. Nothing of `psq` is imported here: it may be the wrong one.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from psqd import __version__

__all__ = ["check", "problem", "psq"]

ADVICE = "run `pip uninstall psq` and then `pip install --force-reinstall psqd`"
_VERSION = re.compile(r"""^__version__(?:\s*:\s*\w+)?\s*=\s*["']([^"']+)["']""", re.MULTILINE)


def problem(folder: Path, version: str = __version__) -> str:
    """What is wrong with the installation, "" for nothing.

    Args:
        folder: Where the packages `psqd` and `psq` lie.
        version: psqd's own.
    """
    try:
        text = (folder / "psq" / "__init__.py").read_text("utf-8")
    except (OSError, ValueError) as error:
        return f"the package psq is not beside psqd in {folder} ({error}): {ADVICE}"
    found = _VERSION.search(text)
    if found is None:
        return f"the package psq in {folder} is not psqd's own but the old one of PyPI: {ADVICE}"
    if found[1] != version:
        return f"psq is version {found[1]} and psqd {version}, in {folder}: they must be the same: {ADVICE}"
    for pattern in ("psq-*.dist-info", "psq-*.egg-info"):
        for old in folder.glob(pattern):
            return f"the old {old.name.rpartition('.')[0]} of PyPI is installed over psqd's psq, in {folder}: {ADVICE}"
    return ""


def check(command: str) -> None:
    """End the process with exit code 2 where the installation is a mixture.

    Args:
        command: The command's name, for the message.
    """
    said = problem(Path(__file__).resolve().parent.parent)
    if said:
        sys.stderr.write(f"{command}: {said}\n")
        sys.exit(2)


def psq() -> None:
    """The `psq` command, after the check."""
    check("psq")
    from psq.cli.main import cli, main
    from psqd.declare import declare

    cli.add_command(declare)  # it reads psqd's config, of which psq knows nothing
    main()
