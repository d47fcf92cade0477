"""Enqueue a task and wait for its result: ``python examples/enqueue.py 5 6``.

Run it from the folder above, beside ``psqd -c conf/psqd.yaml``. It finds the
broker by PSQ_BROKER and PSQ_STORAGE, else it is the embedded one.
"""

from __future__ import annotations

import sys

import psq


def main() -> None:
    """Enqueue ``adder`` with the two numbers of the command line."""
    queue = psq.Queue()
    result = queue.enqueue("examples.tasks:adder", int(sys.argv[1]), int(sys.argv[2]))
    print(f"enqueued {result.id}")
    print(f"result: {result.result(timeout=30)}")


if __name__ == "__main__":
    main()
