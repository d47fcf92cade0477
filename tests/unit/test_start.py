"""What psqworker makes of the name it is given."""

from __future__ import annotations

from pathlib import Path

import pytest

import psq
from psq.errors import ConfigError
from psqd.worker.start import _find_queue

MODULE = """
import psq

def make():
    return psq.Queue(name="made")

def fails():
    raise RuntimeError("no settings")

def needs(more):
    pass

def ends():
    raise SystemExit(0)

def number():
    return 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"start_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_ends.py").write_text("raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_callable_may_make_the_queue(module: str) -> None:
    made = _find_queue(f"{module}.make")
    assert isinstance(made, psq.Queue)
    assert made.name == "made"


@pytest.mark.parametrize(
    ("attribute", "told"),
    [
        (".fails", r"RuntimeError: no settings \(.*\.py:8\)$"),
        (".needs", r"TypeError: needs\(\) missing 1 required positional argument: 'more'"),
        (".ends", "SystemExit: 0"),
        (".number", "is a int, not a psq.Queue"),
        (".nothing", "AttributeError: .*'nothing'$"),
        ("_ends.q", r"SystemExit: 0 \(.*_ends\.py:1\)$"),
        ("_gone.q", "ModuleNotFoundError: No module named '.*_gone'$"),
    ],
)
def test_what_gives_no_queue_is_a_mistake_of_the_command_line(module: str, attribute: str, told: str) -> None:
    """And not a worker that dies: that one would be started again, for ever."""
    with pytest.raises(ConfigError, match=told) as caught:
        _find_queue(f"{module}{attribute}")
    assert str(caught.value).startswith(f"{module}{attribute}")
