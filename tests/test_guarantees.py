"""docs/guarantees.md says which test shows which row: rows and tests must be there, and fit."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "guarantees.md"


def rows() -> dict[str, list[str]]:
    """The cells of each row, by its number."""
    found: dict[str, list[str]] = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if re.fullmatch(r"[A-Z]\d+", cells[0]):
            assert cells[0] not in found, f"two rows are {cells[0]}"
            found[cells[0]] = cells[1:]
    return found


def shown() -> dict[str, list[str]]:
    """The tests of each row, by its number."""
    found = {}
    for number, text in re.findall(r"^- ([A-Z]\d+): ((?:.+\n?)(?:  .+\n?)*)", PAGE.read_text(), re.MULTILINE):
        assert number not in found, f"{number} is shown twice"
        found[number] = re.findall(r"`([^`]+)`", text)
    return found


@cache
def defined(path: str) -> set[str]:
    """The tests of a file."""
    return set(re.findall(r"^def (test_\w+)", (ROOT / path).read_text(), re.MULTILINE))


def test_every_row_is_shown_by_a_test_and_every_test_shows_a_row() -> None:
    assert len(rows()) > 50
    assert set(rows()) == set(shown())


def test_every_row_says_what_becomes_of_the_task_the_worker_and_what_is_seen() -> None:
    assert {number: cells for number, cells in rows().items() if len(cells) != 4 or not all(cells)} == {}


@pytest.mark.parametrize("number", list(rows()))
def test_the_tests_that_show_a_row_exist(number: str) -> None:
    tests = shown().get(number, [])
    assert tests
    for test in tests:
        path, _, name = test.partition("::")
        assert (ROOT / path).is_file(), f"{number}: there is no {path}"
        assert name in defined(path), f"{number}: {path} has no {name}"


def test_the_page_says_what_is_not_promised() -> None:
    text = PAGE.read_text().partition("## Not promised")[2]
    assert len(re.findall(r"^- \*\*", text, re.MULTILINE)) >= 8


def test_the_metrics_that_the_page_names_exist() -> None:
    source = (ROOT / "psqd" / "worker" / "metrics.py").read_text()
    named = set(re.findall(r"\bpsqd_[a-z_]+", PAGE.read_text()))
    assert len(named) > 8
    assert {name for name in named if f'"{name.removesuffix("_total")}"' not in source} == set()


#: Words of the daemon's lines that the page quotes; ``…`` and figures stand for what differs.
QUOTED = re.compile(r"(?:[Ll]og: |A warning[^|`]*: )((?:`[^`]+`[^|]*)+)\|")


def test_the_lines_of_the_log_that_the_page_quotes_exist() -> None:
    source = "\n".join(path.read_text() for package in ("psq", "psqd") for path in (ROOT / package).rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # one text over several lines
    source = re.sub(r"\{[^{}]*\}|%[sdg]|%\.\d[fg]", "…", source)
    quoted = [text for found in QUOTED.findall(PAGE.read_text()) for text in re.findall(r"`([^`]+)`", found)]
    assert len(quoted) > 15
    missing = []
    for text in quoted:
        if re.fullmatch(r"psqd_\w+|/\w+|\w+", text):
            continue
        parts = [part.strip(" :") for part in re.split(r"…|\b\d+\b|SIG[A-Z]+|: |, ", text)]
        missing += [f"{part!r} of {text!r}" for part in parts if len(part) > 2 and part not in source]
    assert missing == []
