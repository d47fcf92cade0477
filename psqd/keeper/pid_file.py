"""The file that says which process to send signals to."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

__all__ = ["PidFile"]


class PidFile:
    """Holds this process's id while it runs; nobody ever reads half of it.

    Args:
        path: Where; one that was left over is replaced.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._text = f"{os.getpid()}\n"

    def write(self) -> None:
        """Write it.

        Raises:
            OSError: It can't be written there.
        """
        try:
            fd, temporary = tempfile.mkstemp(prefix=f".{self.path.name}-", dir=self.path.parent)
        except OSError as error:  # it names the temporary file
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        try:
            with os.fdopen(fd, "w") as file:
                os.fchmod(fd, 0o644)
                file.write(self._text)
            os.replace(temporary, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def remove(self) -> None:
        """Remove it, unless it is another process's by now. Idempotent."""
        with contextlib.suppress(OSError):
            if self.path.read_text() == self._text:
                self.path.unlink()
