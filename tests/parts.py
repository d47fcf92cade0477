"""The real servers that tests run against: started on demand, once a session, ended by process group.

``scripts/test.sh`` starts the emulators once for all its lanes (`tests.servers`)
and names their addresses in the variables of `SHARED`; a session that finds
them there uses them. So each test takes a project of its own, and one that
kills or restarts an emulator starts its own.

A part that is missing on this machine skips its tests with a reason, and the
session ends with a list of what was not tested; with ``CI=true`` it fails them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest

#: Seconds that an emulator may take to start: a cold JVM on a busy machine.
START_TIMEOUT = 120.0

#: Variables that name an emulator that several sessions share, by the function that makes one.
SHARED = {
    "pubsub_emulator": "TEST_PUBSUB_EMULATOR",
    "datastore_emulator": "TEST_DATASTORE_EMULATOR",
    "firestore_emulator": "TEST_FIRESTORE_EMULATOR",
}

#: What was not tested, and why: printed at the end of the session.
missing: dict[str, str] = {}


def need(part: str, reason: str) -> None:
    """Skip this test because a part is missing; a failure where CI=true."""
    missing[part] = reason
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{part} is missing, and CI=true: {reason}", pytrace=False)
    pytest.skip(f"{part}: {reason}")


def free_port() -> int:
    """A TCP port on loopback that is free right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Part:
    """A server in a process group of its own.

    Attributes:
        name: For messages.
        address: ``127.0.0.1:port``, once it runs.
        heap: Megabytes that its JVM may take, if it is one.
    """

    def __init__(self, name: str, command: Callable[[int], Sequence[str]], answers: Callable[[str], bool]) -> None:
        self.name = name
        self.address = ""
        self.heap = 768
        self._command, self._answers = command, answers
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the leader of its group."""
        assert self._process is not None
        return self._process.pid

    def start(self, again_at: str = "") -> str:
        """Start it and wait until it answers; its address. Tries another port when one was taken meanwhile.

        Args:
            again_at: The address that it had before, to start it there again.
        """
        problem = ""
        for _ in range(3):
            port = int(again_at.rpartition(":")[2]) if again_at else free_port()
            self._log = tempfile.TemporaryFile()  # noqa: SIM115
            self._process = subprocess.Popen(
                self._command(port),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_environment(self.heap),
            )
            self.address = f"127.0.0.1:{port}"
            deadline = time.monotonic() + START_TIMEOUT
            while time.monotonic() < deadline and self._process.poll() is None:
                if self._answers(self.address):
                    return self.address
                time.sleep(0.1)
            problem = self.output()
            self.stop()
        raise RuntimeError(f"{self.name} did not start:\n{problem}")

    def output(self) -> str:
        """What it wrote so far, the last 4,000 characters."""
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-4000:]

    def stop(self) -> None:
        """End its whole process group. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if not group_alive(process.pid, 3.0):
                break
        process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None


def group_alive(group: int, patience: float) -> bool:
    """True where a process of the group is still there after `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return False
        if time.monotonic() >= deadline:
            return True
        time.sleep(0.05)


def _environment(heap: int) -> dict[str, str]:
    env = dict(os.environ)
    for name in ("PUBSUB_EMULATOR_HOST", "DATASTORE_EMULATOR_HOST", "FIRESTORE_EMULATOR_HOST"):
        env.pop(name, None)
    env["CLOUDSDK_CORE_DISABLE_PROMPTS"] = "1"
    # Without a writable home gcloud can't start.
    env.setdefault("CLOUDSDK_CONFIG", str(state() / "gcloud"))
    env["JAVA_TOOL_OPTIONS"] = f"-Xmx{heap}m -XX:+UseSerialGC -XX:TieredStopAtLevel=4"
    return env


_state_folder: tempfile.TemporaryDirectory[str] | None = None


def state() -> Path:
    """A folder of this session."""
    global _state_folder
    if _state_folder is None:
        _state_folder = tempfile.TemporaryDirectory(prefix="psq-tests-")
    return Path(_state_folder.name)


def gcloud(emulator: str) -> str:
    """Path of gcloud, where it can run this emulator; otherwise the test is skipped.

    Args:
        emulator: Folder of the component below the SDK's ``platform``.
    """
    path = shutil.which("gcloud")
    if path is None:
        need(emulator, "gcloud is not on PATH (scripts/setup-ci.sh)")
    assert path is not None
    if shutil.which("java") is None:
        need(emulator, "java is not on PATH; the emulators need it")
    roots = [Path(os.path.realpath(path)).parent.parent, Path("/usr/lib/google-cloud-sdk")]
    if not any((root / "platform" / emulator).is_dir() for root in roots):
        need(emulator, f"gcloud has no {emulator} (gcloud components install, or apt-get install)")
    return path


def _accepts(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _http_answers(address: str) -> bool:
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(f"http://{address}/", timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def pubsub_emulator() -> Part:
    """The Pub/Sub emulator, not started. It allows many in one session, so that a test may kill its own."""
    path = gcloud("pubsub-emulator")

    def command(port: int) -> list[str]:
        return [path, "beta", "emulators", "pubsub", "start", f"--host-port=127.0.0.1:{port}", "--quiet"]

    return Part("the Pub/Sub emulator", command, _http_answers)


def datastore_emulator() -> Part:
    """Datastore's own emulator, in the mode that is strongly consistent; not started."""
    path = gcloud("cloud-datastore-emulator")

    def command(port: int) -> list[str]:
        return [
            *(path, "beta", "emulators", "datastore", "start", f"--host-port=127.0.0.1:{port}", "--quiet"),
            *("--project=psq-test", "--use-firestore-in-datastore-mode", "--no-store-on-disk"),
            f"--data-dir={tempfile.mkdtemp(dir=state())}",
        ]

    return Part("the Datastore emulator", command, _http_answers)


def firestore_emulator() -> Part:
    """Firestore's emulator in Datastore mode, which is stricter in some limits; not started."""
    path = gcloud("cloud-firestore-emulator")

    def command(port: int) -> list[str]:
        return [
            *(path, "emulators", "firestore", "start", f"--host-port=127.0.0.1:{port}", "--quiet"),
            "--database-mode=datastore-mode",
        ]

    return Part("the Firestore emulator", command, _http_answers)


def shared(make: Callable[[], Part]) -> str:
    """Address of the emulator that several sessions share, or ""."""
    return os.environ.get(SHARED[make.__name__], "")


def running(make: Callable[[], Part]) -> Iterator[str]:
    """For fixtures: the address of the shared emulator; where there is none start one, yield its address, stop it."""
    address = shared(make)
    if address:
        yield address
        return
    part = make()
    try:
        yield part.start()
    finally:
        part.stop()
