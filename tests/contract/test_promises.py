"""README.md maps promises to tests by name: the names must be there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parent


def test_every_test_that_the_map_names_exists() -> None:
    text = (HERE / "README.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    defined = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 80
    assert named - defined == set()


def test_every_file_that_the_map_names_exists() -> None:
    text = (HERE / "README.md").read_text()
    named = set(re.findall(r"`(tests/[\w/.]+)`", text))
    assert {name for name in named if not (TESTS.parent / name).exists()} == set()
