"""The servers of the contract suites: started when first needed unless one is shared, ended with the process."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator

from tests import parts
from tests.front.client import Front
from tests.front.process import front as running_front

_running: dict[str, parts.Part] = {}
_front: Front | None = None


def emulator(make: Callable[[], parts.Part]) -> str:
    """Address of an emulator."""
    address = parts.shared(make)
    if address:
        return address
    part = _running.get(make.__name__)
    if part is None:
        part = make()
        part.start()
        atexit.register(part.stop)
        _running[make.__name__] = part
    return part.address


@contextlib.contextmanager
def front() -> Iterator[Front]:
    """The front with its default manners, before both emulators; this process is a client that it knows."""
    global _front
    if _front is None:
        process = running_front(emulator(parts.pubsub_emulator), emulator(parts.datastore_emulator))
        _front = process.__enter__()
        atexit.register(process.__exit__, None, None, None)
    _front.reset()
    before = {name: os.environ.get(name) for name in _front.environment()}
    os.environ.update(_front.environment())
    try:
        yield _front
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _front.reset()
