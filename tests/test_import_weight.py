"""`import psq` is light: the standard library only, nothing patched, and little time."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

#: Modules that are heavy for what a bare `import psq` needs.
HEAVY = {
    "asyncio",
    "dataclasses",
    "inspect",
    "json",
    "logging",
    "sqlite3",
    "ssl",
    "urllib.request",
    "importlib.metadata",
}

PROBE = """
import json, os, sys, threading, time, socket, select
before = set(sys.modules)
originals = [threading.Thread, threading.Lock, time.sleep, socket.socket, select.select, os.fork]
{code}
added = sorted(set(sys.modules) - before)
same = originals == [threading.Thread, threading.Lock, time.sleep, socket.socket, select.select, os.fork]
print(json.dumps([added, same, threading.active_count()]))
"""


def probe(code: str) -> tuple[set[str], bool, int]:
    """Modules that the code loads in a bare interpreter, whether it patched nothing, and the threads."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(code=code)], capture_output=True, text=True, check=True, timeout=60
    )
    added, same, threads = json.loads(done.stdout)
    return set(added), same, threads


def foreign(modules: set[str]) -> set[str]:
    """Those that are neither psq's nor the standard library's."""
    return {name for name in modules if name.split(".")[0] not in sys.stdlib_module_names | {"psq"}}


def test_import_psq_loads_itself_and_nothing_heavy() -> None:
    added, unpatched, threads = probe("import psq")
    assert {name for name in added if name.split(".")[0] == "psq"} == {"psq"}
    assert foreign(added) == set()
    assert added & HEAVY == set()
    assert unpatched
    assert threads == 1


@pytest.mark.parametrize(
    "code",
    [
        "import psq; [getattr(psq, name) for name in psq.__all__ if name not in ('DatastoreStorage',)]",
        "from psq import Queue, BroadcastQueue, Client, Retry, TaskResult, current_task, task, connect",
        "import psq; psq.Queue(psq.Client(project='p'), 'fast')",
        "import psq; psq.Queue(psq.connect('pubsub://p'), storage=None)",
        "import psq; psq.Queue()",
        "import psq; psq.Queue(asynchronous=False).enqueue('textwrap:dedent', 'x').result()",
    ],
)
def test_names_and_queues_load_the_standard_library_only(code: str) -> None:
    added, unpatched, threads = probe(code)
    assert foreign(added) == set()
    assert not any(name.split(".")[0] == "psqd" for name in added)
    assert unpatched
    assert threads == 1


def test_enqueueing_into_sqlite_loads_the_standard_library_only(tmp_path: Any) -> None:
    code = f"import psq; psq.Queue(psq.connect('sqlite://{tmp_path}/psq.db')).enqueue('textwrap:dedent', 'x')"
    added, unpatched, _ = probe(code)
    assert foreign(added) == set()
    assert "psq.testing" not in added
    assert unpatched


def test_dir_and_all_name_what_there_is() -> None:
    import psq

    assert set(psq.__all__) <= set(dir(psq))
    for name in psq.__all__:
        assert getattr(psq, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = psq.nonsense  # type: ignore[attr-defined]


@pytest.mark.slow
def test_import_psq_takes_at_most_40_ms_over_bare_python() -> None:
    def best(code: str) -> float:
        # CPU time: what else the machine does is no matter of ours
        timer = f"import time; begin = time.process_time(); {code}; print(time.process_time() - begin)"
        runs = [subprocess.run([sys.executable, "-c", timer], capture_output=True, check=True) for _ in range(7)]
        return min(float(run.stdout) for run in runs)

    assert best("import psq") <= 0.040
    assert best("import psq; psq.Queue") <= 0.120, "what a web app loads at its first look at a Queue"
