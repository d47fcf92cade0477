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
