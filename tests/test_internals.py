"""docs/internals.md has a word about each class, and about none that is gone."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "internals.md"


@cache
def classes() -> dict[str, set[str]]:
    """The public classes, and the files that have them; without errors and protocols, which speak for themselves."""
    found: dict[str, set[str]] = {}
    for package in ("psq", "psqd"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if not isinstance(node, ast.ClassDef) or node.name.startswith("_") or path == ROOT / "psq/errors.py":
                    continue
                if "Protocol" not in [ast.unparse(base) for base in node.bases]:
                    found.setdefault(node.name, set()).add(path.name)
    return found


def test_every_class_is_named() -> None:
    named = set(re.findall(r"[A-Za-z]+", PAGE.read_text()))
    assert sorted(set(classes()) - named) == [], "write a paragraph about what is new"


def test_every_name_in_bold_is_a_class() -> None:
    bold = set(re.findall(r"\*\*([A-Z]\w+)\*\*", PAGE.read_text()))
    assert len(bold) > 80
    assert sorted(bold - set(classes())) == []


def test_every_file_that_is_named_exists() -> None:
    files = {name.rpartition("/")[2] for name in re.findall(r"`([\w/]+\.py)`", PAGE.read_text())}
    there = {path.name for package in ("psq", "psqd") for path in (ROOT / package).rglob("*.py")}
    assert len(files) > 60
    assert sorted(files - there) == []


def test_the_file_after_a_class_is_where_it_is() -> None:
    wrong = []
    for name, file in re.findall(r"\*\*(\w+)\*\* \(`([\w/]+\.py)`\)", PAGE.read_text()):
        if file.rpartition("/")[2] not in classes().get(name, ()):
            wrong.append(f"{name} is not in {file}")
    assert wrong == []
