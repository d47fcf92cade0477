"""psqd: the daemon that runs psq's tasks."""
