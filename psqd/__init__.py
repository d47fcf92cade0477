"""psqd: the daemon that runs psq's tasks."""

__version__ = "1.0.0"
