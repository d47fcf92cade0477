"""A real systemd for the tests: a manager of its own, in a mount namespace and a control group of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests import parts
from tests.acceptance.processes import Family, wait_until

__all__ = ["Systemd", "systemd"]

#: Where the manager is on Debian and on others.
MANAGERS = ("/lib/systemd/systemd", "/usr/lib/systemd/systemd")
#: Its tree of control groups: the one of the hybrid layout, and the one and only.
TREES = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")

#: In the namespace: /run is empty but for what says "systemd runs here".
BEGIN = """
echo $$ > "$GROUP/cgroup.procs"
mount -t tmpfs none /run
mkdir -p /run/systemd/system "$XDG_RUNTIME_DIR"
exec "$MANAGER" --user --unit=psq-test.target --log-target=console
"""


class Systemd:
    """A user manager: it starts, stops and kills units as the system's does, but can't change users."""

    def __init__(self, folder: Path, family: Family, manager: str, group: Path) -> None:
        self.folder, self._family = folder, family
        self.units = folder / "home" / ".config" / "systemd" / "user"
        self.units.mkdir(parents=True)
        (self.units / "psq-test.target").write_text("[Unit]\nDescription=nothing\n")
        self._environment = family.environment(
            HOME=str(folder / "home"),
            XDG_CONFIG_HOME=str(folder / "home" / ".config"),
            XDG_RUNTIME_DIR="/run/user/0",
            GROUP=str(group),
            MANAGER=manager,
        )
        self.log = folder / "systemd.log"
        with self.log.open("wb") as log:
            self._process = family.start(
                ["unshare", "--mount", "--propagation", "private", "sh", "-ec", BEGIN],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: "psq-test.target" in self.ctl("list-units", "--no-pager"), 30, self.said)

    def ctl(self, *words: str, timeout: float = 90.0) -> str:
        """``systemctl``, and what it says."""
        inside = ["nsenter", f"--target={self._process.pid}", "--mount", "--"]
        done = subprocess.run(
            [*inside, "systemctl", "--user", *words],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return done.stdout + done.stderr

    def shows(self, unit: str, what: str) -> str:
        """One property of a unit."""
        return self.ctl("show", unit, f"--property={what}", "--value").strip()

    def said(self) -> str:
        """The log, the units' own lines among it."""
        return self.log.read_text(errors="replace")[-6000:]

    def end(self) -> None:
        """End it and all its units."""
        self._family.end()


@contextlib.contextmanager
def systemd(folder: Path, family: Family) -> Iterator[Systemd]:
    """A manager that is ended whatever happens; skips where there can be none."""
    manager = next((path for path in MANAGERS if os.access(path, os.X_OK)), None)
    missing = [name for name in ("unshare", "nsenter", "systemctl") if shutil.which(name) is None]
    if manager is None or missing or os.geteuid() != 0:
        parts.need("systemd", f"it takes root, systemd and util-linux; missing: {missing or manager or 'systemd'}")
    assert manager is not None
    tree = next((Path(tree) for tree in TREES if (Path(tree) / "cgroup.procs").exists()), None)
    if tree is None or not os.access(tree / "cgroup.procs", os.W_OK):
        parts.need("systemd", "control groups can't be made here")
    assert tree is not None
    group = tree / f"psq-test-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    it = None
    try:
        it = Systemd(folder, family, manager, group)
        yield it
    finally:
        if it is not None:
            it.end()
        _remove(group)


def _remove(group: Path) -> None:
    """Control groups go when their last process is gone, which takes the kernel a moment."""
    deadline = time.monotonic() + 5
    while group.exists():
        for path, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
