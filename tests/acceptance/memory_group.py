"""A limit of memory for some processes, as a container has it: past it the kernel ends one of them."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.acceptance.processes import wait_until
from tests.parts import need

__all__ = ["MemoryGroup", "memory_group"]

_ROOT = Path("/sys/fs/cgroup")


class MemoryGroup:
    """A control group with a limit.

    Args:
        folder: Where it is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def prefix(self) -> list[str]:
        """A command that goes into the group, with all that it starts, and becomes the one behind it."""
        return ["sh", "-c", f'echo $$ > {self._folder}/cgroup.procs && exec "$@"', "sh"]


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[MemoryGroup]:
    """A group of its own, removed at the end; the processes must have ended by then.

    Args:
        limit: Bytes.
    """
    old = (_ROOT / "memory").is_dir()
    folder = (_ROOT / "memory" if old else _ROOT) / f"psq-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit))
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        need("memory groups", f"a limit of memory needs root and control groups: {error}")
    try:
        yield MemoryGroup(folder)
    finally:
        # A process that has ended is in it until its parent, init by now, has looked at it
        wait_until(lambda: _removed(folder), 20, lambda: f"in {folder}: {(folder / 'cgroup.procs').read_text()}")


def _removed(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()
