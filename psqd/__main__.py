"""``python -m psqd`` is the command `psqd`."""

from psqd.cli import psqd

psqd(prog_name="psqd")
