"""What the README tells people to type works as it says: the five minutes, replayed in a fresh folder."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.processes import ROOT, Family, family, wait_until

BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text()


@dataclass
class Block:
    """A fenced block, its language, and the paragraph before it."""

    language: str
    text: str
    before: str


def blocks(text: str) -> list[Block]:
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        before = text[: match.start()].rstrip().rsplit("\n\n", 1)[-1]
        found.append(Block(match[1], match[2], before))
    return found


def section(title: str) -> str:
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## )", README, re.DOTALL | re.MULTILINE)
    assert match, f"README has no section {title}"
    return match[1]


@pytest.fixture
def members() -> Iterator[Family]:
    with family() as it:
        yield it


def file_of(block: Block) -> str:
    """The file that a block is: the last `name` before it, of the kind of the block."""
    ending = {"python": "py", "yaml": "yaml"}[block.language]
    names = re.findall(rf"`([\w.]+\.{ending})`", block.before)
    assert names, f"no file name before:\n{block.text}"
    return names[-1]


@pytest.mark.timeout(120)
def test_the_five_minutes_work_as_they_are_written(tmp_path: Path, members: Family) -> None:
    environment = members.environment(
        PATH=f"{BIN}:/usr/bin:/bin", XDG_STATE_HOME=str(tmp_path / "state"), HOME=str(tmp_path)
    )
    log = tmp_path / "psqd.log"
    daemon = None
    said = 0
    for block in blocks(section("Five minutes")):
        if block.language in ("python", "yaml"):
            (tmp_path / file_of(block)).write_text(block.text)
            continue
        assert block.language == "console", block
        expected: list[str] = []
        output: list[str] = []
        for line in block.text.splitlines():
            if not line.startswith("$ "):
                expected.append(line)
                continue
            command = line[2:]
            if command.startswith("psqd ") and "--check" not in command:
                with log.open("wb") as out:
                    words = command.split()
                    daemon = members.start(
                        [BIN / words[0], *words[1:]], cwd=tmp_path, env=environment, stdout=out, stderr=out
                    )
                wait_until(lambda: "ready" in log.read_text(), 30, log.read_text)
                continue
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}\n{log.read_text()}"
            output += done.stdout.splitlines()
        if expected:
            said += 1
            assert output == expected, block.text
    assert said >= 2, "the guide shows what is printed, at least twice"
    assert daemon is not None
    stop = re.search(r"`(kill \$\(cat psqd\.pid\))`", section("Five minutes"))
    assert stop, "the guide says how to stop"
    subprocess.run(["bash", "-c", stop[1]], cwd=tmp_path, env=environment, check=True)
    assert daemon.wait(timeout=40) == 0, log.read_text()
    wait_until(lambda: not members.alive(), 5, members.describe)


def test_the_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", README + contributing)) - {"a", "it", "the"}
    assert {"demo", "test", "lint", "types", "test-slow", "lock"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_what_the_readme_names_of_psq_is_there() -> None:
    import psq

    for name in set(re.findall(r"\bpsq\.([A-Za-z]\w+)", README)) - {"db", "yaml"}:
        assert hasattr(psq, name), name
    q = psq.Queue(psq.connect("sqlite:///nonexistent/never-opened.db"), storage=None)
    for name in set(re.findall(r"\bq\.(\w+)\(", README)):
        assert callable(getattr(q, name)), name
    for name in set(re.findall(r"\br\.(\w+)\(", README)):
        assert callable(getattr(psq.TaskResult, name)), name


@pytest.mark.parametrize("page", sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]))
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        where = (page.parent / path).resolve() if path else page
        assert where.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", where.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target
