"""docs/wire-format.md says what the code does."""

from __future__ import annotations

import json
import re
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from psq.loading import _LOADERS
from psq.message import _OPTIONAL, _REQUIRED, decode
from psq.serializers import dump, load

PAGE = (Path(__file__).parents[2] / "docs" / "wire-format.md").read_text()

MEANT: dict[str, Any] = {
    "bytes": b"hi",
    "tuple": (1, 2),
    "set": {1, 2},
    "frozenset": frozenset([1]),
    "dict": {1: "a", (2,): "b"},
    "datetime": datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    "date": date(2026, 1, 2),
    "time": time(12, 30),
    "decimal": Decimal("1.10"),
    "uuid": UUID("e674f86d-8545-45d2-b61b-4d6820535082"),
}


def examples() -> dict[str, Any]:
    """The tagged values of the table that are complete JSON."""
    found = {}
    for text in re.findall(r"`(\{\"\$\": .*?\})`", PAGE):
        try:
            value = json.loads(text)
        except ValueError:  # with an ellipsis
            continue
        found[value["$"]] = value
    return found


def test_the_example_is_a_message() -> None:
    example = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert example
    assert decode(example[1].encode()).function == "myapp.tasks:adder"


@pytest.mark.parametrize("tag", MEANT)
def test_each_example_of_a_value_is_what_is_written_and_read(tag: str) -> None:
    assert examples()[tag] == dump(MEANT[tag], "it")
    loaded = load(examples()[tag], lambda module: False)
    assert loaded == MEANT[tag]
    assert type(loaded) is type(MEANT[tag])


def test_every_key_and_every_tag_is_on_the_page() -> None:
    keys = set(re.findall(r"^\| `(\w+)` \| (?:integer|string|array|object|number)", PAGE, re.MULTILINE))
    assert {name for name, _ in _OPTIONAL} <= keys
    assert len(keys) == _REQUIRED + len(_OPTIONAL)
    assert set(re.findall(r"\"\$\": \"(\w+)\"", PAGE)) == set(_LOADERS)
