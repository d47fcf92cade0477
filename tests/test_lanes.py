"""Several pytest processes that share one run."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CONFTEST = """
    import os, pytest

    def note(*words):
        with open({notes!r}, "a") as file:
            file.write(" ".join(map(str, words)) + "\\n")

    @pytest.fixture(scope="session")
    def server():
        note("up", os.getpid())
        yield
        note("down", os.getpid())

    @pytest.fixture(scope="module")
    def shelf():
        note("in", os.getpid())
        yield
        note("out", os.getpid())
"""
TESTS = """
    import os, pytest, time
    from conftest import note

    @pytest.mark.parametrize("number", range(20))
    def test_it({fixtures}, number):
        note("ran", __name__, number, os.getpid())
        time.sleep(0.01)
        assert number != {bad}
"""


def write(path: Path, text: str) -> None:
    path.write_text("\n".join(line[4:] for line in text.splitlines()))


def test_each_test_runs_in_one_process_and_fixtures_end_where_they_began(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    write(tmp_path / "conftest.py", CONFTEST.format(notes=str(notes)))
    for name, bad in (("a", -1), ("b", 7), ("c", -1)):
        write(tmp_path / f"test_{name}.py", TESTS.format(bad=bad, fixtures="server"))
    write(tmp_path / "test_d.py", TESTS.format(bad=-1, fixtures="server, shelf"))
    claims = tmp_path / "claims"
    claims.mkdir()
    command = [*(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.lanes")]
    command += [f"--lanes={claims}", "--rootdir", str(tmp_path), str(tmp_path)]
    runs = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(3)
    ]
    said = [run.communicate(timeout=100)[0] for run in runs]
    lines = [line.split() for line in notes.read_text().splitlines()]
    ran = Counter((line[1], line[2]) for line in lines if line[0] == "ran")
    assert len(ran) == 80, said
    assert set(ran.values()) == {1}
    assert sorted(run.returncode for run in runs) == [0, 0, 1], said  # the one that had the failing test
    ups = Counter(line[1] for line in lines if line[0] == "up")
    assert ups == Counter(line[1] for line in lines if line[0] == "down")
    assert set(ups.values()) == {1}, "a session's fixture is set up once in a process"
    with_shelf = {line[3] for line in lines if line[:2] == ["ran", "test_d"]}
    shelves = [(line[0], line[1]) for line in lines if line[0] in ("in", "out")]
    assert len(with_shelf) == 1, "a module with a fixture of its own stays in one process"
    assert shelves == [("in", *with_shelf), ("out", *with_shelf)]


def test_no_unit_test_is_slow_since_the_slow_lanes_do_not_look_there() -> None:
    assert [path.name for path in (ROOT / "tests" / "unit").glob("*.py") if "mark.slow" in path.read_text()] == []
