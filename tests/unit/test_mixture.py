"""The refusal to run on a mixture with the old psq of PyPI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from psqd import __version__
from psqd.mixture import problem

ROOT = Path(__file__).parents[2]
OLD = "from .queue import Queue\nfrom .storage import DatastoreStorage\n__all__ = ['Queue']\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages with a fresh psqd."""
    (tmp_path / "psq").mkdir()
    (tmp_path / "psqd").mkdir()
    (tmp_path / f"psqd-{__version__}.dist-info").mkdir()
    (tmp_path / "psq" / "__init__.py").write_text(f'"""psq."""\n\n__version__ = "{__version__}"\n')
    return tmp_path


def test_a_fresh_installation_is_fine(site: Path) -> None:
    assert problem(site) == ""


def test_this_installation_is_fine() -> None:
    assert problem(ROOT) == ""


def test_the_old_psq_over_ours_is_refused(site: Path) -> None:
    (site / "psq" / "__init__.py").write_text(OLD)
    assert "not psqd's own but the old one of PyPI" in problem(site)
    assert "pip install --force-reinstall psqd" in problem(site)


@pytest.mark.parametrize("folder", ["psq-0.8.0.dist-info", "psq-0.8.0-py3.11.egg-info"])
def test_the_old_psq_beside_ours_is_refused(site: Path, folder: str) -> None:
    (site / folder).mkdir()
    assert "the old psq-0.8.0" in problem(site)


def test_what_is_left_after_the_old_psq_was_removed_is_refused(site: Path) -> None:
    (site / "psq" / "__init__.py").unlink()
    assert "is not beside psqd" in problem(site)


def test_two_versions_are_refused(site: Path) -> None:
    (site / "psq" / "__init__.py").write_text('__version__ = "0.9.9"\n')
    assert f"psq is version 0.9.9 and psqd {__version__}" in problem(site)


@pytest.mark.parametrize("command", ["psqd", "psqworker", "psq"])
def test_each_command_refuses_before_it_imports_psq(tmp_path: Path, command: str) -> None:
    for name in ("__init__.py", "cli.py", "mixture.py"):
        (tmp_path / "psqd").mkdir(exist_ok=True)
        (tmp_path / "psqd" / name).write_text((ROOT / "psqd" / name).read_text())
    (tmp_path / "psq").mkdir()
    (tmp_path / "psq" / "__init__.py").write_text("raise ImportError('cannot import name pubsub')\n")
    start = "from psqd.mixture import psq as run" if command == "psq" else f"from psqd.cli import {command} as run"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = [{command!r}, 'config.q']\n{start}\nrun()"
    code = code.replace("'config.q'", "'-c', 'x.yaml'") if command == "psqd" else code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"{command}: the package psq in {tmp_path} is not psqd's own but the old one of PyPI")
    assert "Traceback" not in done.stderr
