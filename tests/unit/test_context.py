"""What a running task can ask, and the contexts around it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import Context
from typing import Any

import pytest

import psq
from psq.context import TaskContext, enter_contexts, running


def test_outside_of_a_task_there_is_none_and_it_says_so() -> None:
    assert not psq.current_task
    assert not psq.current_queue
    assert "no task runs here" in repr(psq.current_task)
    with pytest.raises(RuntimeError, match=r"psq\.current_task is there only while a task runs"):
        _ = psq.current_task.id
    with pytest.raises(RuntimeError, match=r"psq\.current_queue"):
        psq.current_queue.enqueue("a:b")
    assert not hasattr(psq.current_task, "__wrapped__")


def test_inside_of_a_task_it_is_that_task_and_its_queue() -> None:
    task = TaskContext("abc", "m:f", "fast", attempt=2)
    queue = psq.Queue(name="fast", asynchronous=False)

    def body() -> None:
        running(task, queue)
        assert psq.current_task
        assert psq.current_task.attempt == 2
        assert psq.current_task == task
        assert hash(psq.current_task) == hash(task)
        assert psq.current_queue.name == "fast"
        assert psq.current_queue == queue
        assert psq.TaskResult("abc")._queue is queue
        assert "abc" in repr(psq.current_task)
        psq.current_task.worker = "me"

    Context().run(body)
    assert task.worker == "me"
    assert not psq.current_task


def test_a_copy_of_the_proxy_is_the_proxy() -> None:
    assert copy.copy(psq.current_task) is psq.current_task
    assert copy.deepcopy({"task": psq.current_task})["task"] is psq.current_task
    assert pickle.loads(pickle.dumps(psq.current_queue)) is psq.current_queue


class Diary:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def context(self, name: str) -> Any:
        @contextmanager
        def manager() -> Iterator[None]:
            self.lines.append(f"enter {name}")
            try:
                yield
            finally:
                self.lines.append(f"leave {name}")

        return manager


@pytest.mark.parametrize("error", [None, ValueError(), KeyboardInterrupt(), SystemExit(), GeneratorExit()])
def test_contexts_are_left_in_reverse_whatever_was_raised(error: BaseException | None) -> None:
    diary = Diary()
    with ExitStack() as outer:
        if error is not None:
            outer.enter_context(pytest.raises(type(error)))
        with ExitStack() as stack:
            enter_contexts(stack, [diary.context("a"), diary.context("b")])
            if error is not None:
                raise error
    assert diary.lines == ["enter a", "enter b", "leave b", "leave a"]


def test_a_context_that_fails_to_open_leaves_those_before_it() -> None:
    diary = Diary()

    def broken() -> Any:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), ExitStack() as stack:
        enter_contexts(stack, [diary.context("a"), broken])
    assert diary.lines == ["enter a", "leave a"]


def test_no_context_is_fine() -> None:
    with ExitStack() as stack:
        enter_contexts(stack, None)


def test_queue_context_of_psq_0_8_sets_the_queue_within_its_contexts() -> None:
    diary = Diary()
    queue = psq.Queue(name="fast", extra_context=diary.context("app"), asynchronous=False)
    with pytest.raises(KeyError), psq.queue_context(queue):
        assert psq.current_queue == queue
        raise KeyError
    assert diary.lines == ["enter app", "leave app"]
    assert not psq.current_queue
