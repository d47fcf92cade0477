"""deploy/Dockerfile without Docker: its lines are run in a folder, and the command that it ends in works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import dockerfile
from tests.acceptance.processes import ROOT

#: Folders of the image.
PLACES = ("/opt/psqd", "/build", "/srv/app")


class Image:
    """What the instructions make, below a folder; the base image is this machine."""

    def __init__(self, root: Path) -> None:
        self.root, self.at = root, root
        self.environment = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
        self.environment["PIP_NO_COMPILE"] = "1"  # half of the time

    def inside(self, text: str) -> str:
        """The text, with the image's folders moved below ours."""
        for place in PLACES:
            text = text.replace(place, str(self.root / place[1:]))
        return text

    def take(self, instruction: dockerfile.Instruction) -> None:
        """Do what it says."""
        rest = self.inside(instruction.rest)
        match instruction.name:
            case "WORKDIR":
                self.at = Path(rest)
                self.at.mkdir(parents=True)
            case "COPY" if "--from" not in rest:  # between stages: it is there
                *sources, target = rest.split()
                for source in sources:
                    self._copy(ROOT / source, self.at / target)
            case "RUN" if not rest.startswith("useradd "):  # this machine's users are not ours
                command = rest.replace("python -m", f"{sys.executable} -m").replace(" --no-cache-dir", "")
                self.run(command)
            case "ENV":
                for word in rest.split():
                    name, _, value = word.partition("=")
                    self.environment[name] = value.replace(f"${name}", self.environment.get(name, ""))

    def _copy(self, source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)

    def run(self, command: str) -> str:
        """A line in the shell, as RUN does it; what it printed."""
        done = subprocess.run(
            ["sh", "-c", command], cwd=self.at, env=self.environment, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_lines_of_the_dockerfile_make_an_image_whose_command_starts(tmp_path: Path) -> None:
    image = Image(tmp_path)
    instructions = dockerfile.read(ROOT / "deploy" / "Dockerfile")
    for instruction in instructions:
        image.take(instruction)
    [entrypoint] = next(it for it in instructions if it.name == "ENTRYPOINT").words()
    arguments = next(it for it in instructions if it.name == "CMD").words()
    state = f"XDG_STATE_HOME={tmp_path}/state"  # in the image it is the user's home
    for name in (entrypoint, "python", "pip"):
        assert image.run(f"command -v {name}").strip() == str(tmp_path / "opt" / "psqd" / "bin" / name)
    image.run(f"{state} {entrypoint} {' '.join(arguments)} --check")
    # the packages are in the image, not just in the folder that it was built in
    assert str(tmp_path / "opt") in image.run("cd / && python -c 'import psqd; print(psqd.__file__)'")
