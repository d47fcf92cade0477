"""Several pytest processes share one run: each test is taken by the first process that comes to it.

    pytest -p tests.lanes --lanes=FOLDER …        as often as wanted, side by side, with the same arguments

All of them collect all tests, and claim one at a time by making a file in
FOLDER, which has to be empty at first. A module whose fixtures are made once
for the module stays in one process. Not pytest-xdist: its workers are
children that talk over pipes, and it breaks where gevent has patched them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["pytest_addoption", "pytest_runtestloop"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lanes", metavar="FOLDER", type=Path, help="share the tests with all who name this folder")


class _Next:
    """What pytest takes for the next test while it tears one down: claimed only then, not a whole test ahead."""

    def __init__(self, claims: Iterator[pytest.Item]) -> None:
        self._claims = claims
        self._asked = False
        self._item: pytest.Item | None = None

    def item(self) -> pytest.Item | None:
        if not self._asked:
            self._asked, self._item = True, next(self._claims, None)
        return self._item

    def listchain(self) -> list[Any]:
        item = self.item()
        return item.listchain() if item is not None else []


def _claims(items: list[pytest.Item], folder: Path) -> Iterator[pytest.Item]:
    """The items that nobody else has taken; whole modules first, lest one lane is at work when all others end."""
    mine: dict[str, bool] = {}
    what_of = {item: _what(item) for item in items}
    for item in sorted(items, key=lambda item: what_of[item] == item.nodeid):
        what = what_of[item]
        if what not in mine:
            mine[what] = _claim(folder / hashlib.sha256(what.encode()).hexdigest())
        if mine[what]:
            yield item


def _what(item: pytest.Item) -> str:
    """What is claimed for an item: itself, or its module."""
    fixtures = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009  (pytest has no other way)
    scopes = {definition.scope for definitions in fixtures for definition in definitions}
    if scopes & {"class", "module", "package"}:
        return item.nodeid.partition("::")[0]
    return item.nodeid


def _claim(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    folder = session.config.getoption("--lanes")
    if folder is None or session.config.option.collectonly:
        return None
    if session.testsfailed and not session.config.option.continue_on_collection_errors:
        raise session.Interrupted(f"{session.testsfailed} errors during collection")
    claims = _claims(session.items, folder)
    item = next(claims, None)
    while item is not None:
        following = _Next(claims)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following.item()
    return True
