"""`pip install .` in a clean environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.acceptance.processes import ROOT

# What a clone has; not the environments and caches of this one.
PARTS = ["psq", "psqd", "setup.py", "pyproject.toml", "README.md", "LICENSE"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_pip_install_in_a_clean_environment_gives_the_three_commands(tmp_path: Path) -> None:
    source, venv = tmp_path / "source", tmp_path / "venv"
    source.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, source)
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    done = subprocess.run(
        [venv / "bin" / "pip", "install", "--quiet", "--no-compile", source],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(venv / "bin" / command[0]), *command[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for command in ("psqd", "psqworker", "psq"):
        assert "Usage" in run(command, "--help")
    where = run("python", "-c", "import psq, psqd; print(psq.__file__); print(psqd.__file__); print(psq.__version__)")
    psq_file, psqd_file, version = where.split()
    for file in (psq_file, psqd_file):
        assert Path(file).is_relative_to(venv)
        assert (Path(file).parent / "py.typed").exists()
    assert version in run("psqd", "--version")
    missing = [
        str(file.relative_to(ROOT))
        for package in ("psq", "psqd")
        for file in (ROOT / package).rglob("*")
        if file.is_file()
        and "__pycache__" not in file.parts
        and not (Path(psq_file).parent.parent / file.relative_to(ROOT)).exists()
    ]
    assert missing == [], "files of the packages that the wheel has not"


def test_setup_py_leaves_everything_to_pyproject() -> None:
    assert len((ROOT / "setup.py").read_text().splitlines()) == 2
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "psqd"
    assert set(project["scripts"]) == {"psq", "psqd", "psqworker"}


@pytest.mark.parametrize(("file", "extras"), [("requirements.txt", []), ("constraints.txt", ["dev"])])
def test_the_locks_name_hashes_and_no_address(file: str, extras: list[str]) -> None:
    text = (ROOT / file).read_text()
    assert "://" not in text
    assert "--index-url" not in text
    assert "--find-links" not in text
    pinned = [line for line in text.splitlines() if "==" in line and not line.startswith((" ", "#"))]
    assert len(pinned) > 40
    assert text.count("--hash=sha256:") >= len(pinned)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {line.partition("==")[0].lower() for line in pinned}
    for wanted in project["dependencies"] + [
        name for extra in extras for name in project["optional-dependencies"][extra]
    ]:
        name = wanted.partition(">")[0].lower()
        assert name in names, f"{name} is not locked: run make lock"
