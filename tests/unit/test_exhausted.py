"""Which MemoryErrors end the worker: those that nobody waits for, and not a task's own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import get_hub

from psqd.keeper.link import NO_MEMORY
from psqd.keeper.worker_process import Ended
from psqd.worker.exhausted import Exhausted


class Ends:
    def __init__(self) -> None:
        self.count = 0
        self.watch = Exhausted(self.end)

    def end(self) -> None:
        self.count += 1


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    monkeypatch.setattr(get_hub(), "print_exception", lambda *_: None)
    monkeypatch.setattr(sys, "unraisablehook", lambda *_: None)
    it = Ends()
    it.watch.install()
    yield it
    it.watch.remove()


def raising(module: str, error: type[BaseException]) -> Any:
    """A function that raises, of a module of this name."""
    names = {"__name__": module, "error": error}
    exec("def function(*_):\n    raise error", names)
    return names["function"]


def caught(module: str, error: type[BaseException] = MemoryError) -> Any:
    with pytest.raises(error) as raised:
        raising(module, error)()
    return raised.type, raised.value, raised.tb.tb_next


@pytest.mark.parametrize("module", ["psqd.worker.pool", "psq.group_commit", "grpc._channel"])
def test_one_that_is_logged_after_it_was_raised_in_our_code_ends_the_worker(ends: Ends, module: str) -> None:
    logging.getLogger(module).error("it failed", exc_info=caught(module))
    assert ends.count == 1


def test_other_errors_and_those_of_tasks_do_not(ends: Ends) -> None:
    logging.getLogger("psqd").error("it failed", exc_info=caught("psqd.worker.pool", ValueError))
    logging.getLogger("psqd").error("it failed", exc_info=caught("myapp.tasks"))
    logging.getLogger("myapp").error("it failed", exc_info=caught("psq.queue"))
    logging.getLogger("psqd").error("it failed")
    assert ends.count == 0


def test_a_greenlet_of_ours_that_dies_of_it_does(ends: Ends) -> None:
    gevent.spawn(raising("psqd.worker.pool", MemoryError)).join()
    assert ends.count == 1


def test_a_greenlet_of_a_task_that_dies_of_it_does_not(ends: Ends) -> None:
    gevent.spawn(raising("myapp.tasks", MemoryError)).join()
    assert ends.count == 0


def test_a_callback_of_the_hub_that_is_lost_does(ends: Ends) -> None:
    get_hub().loop.run_callback(raising("psqd.worker.held", MemoryError))
    gevent.sleep(0)
    assert ends.count == 1
    get_hub().print_exception("a callback", MemoryError, None, None)  # it could not even be called
    assert ends.count == 2


def test_a_native_thread_of_ours_that_dies_of_it_does(ends: Ends) -> None:
    lost = caught("psq.sqlite.writer")
    sys.unraisablehook(SimpleNamespace(exc_type=lost[0], exc_value=lost[1], exc_traceback=lost[2]))
    assert ends.count == 1
    sys.unraisablehook(SimpleNamespace(exc_type=MemoryError, exc_value=None, exc_traceback=None))
    assert ends.count == 2


def test_nothing_is_left_of_it(ends: Ends) -> None:
    ends.watch.remove()
    logging.getLogger("psqd").error("it failed", exc_info=caught("psqd.worker.pool"))
    gevent.spawn(raising("psqd.worker.pool", MemoryError)).join()
    assert ends.count == 0


def test_the_keeper_calls_it_by_its_name() -> None:
    assert str(Ended(NO_MEMORY)) == "out of memory"
