"""``python -m psq.cli``."""

from psq.cli.main import main

main()
