"""Errors on their way: as text, and back into something that ``except`` fits."""

from __future__ import annotations

import pickle
import traceback
from typing import Any

import pytest

import psq
from psq.failures import MAX_MESSAGE, MAX_TRACEBACK, cancelled, error_document, rebuild
from tests.unit import sample_tasks


def document_of(error: BaseException) -> Any:
    try:
        raise error
    except BaseException as raised:
        return error_document(raised)


def test_an_error_is_said_by_type_message_and_traceback() -> None:
    document = document_of(ValueError("too small"))
    assert document["type"] == "builtins:ValueError"
    assert document["message"] == "too small"
    assert "in document_of" in document["traceback"]
    assert document["traceback"].endswith("ValueError: too small\n")


class Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_whose_methods_fail_is_said_all_the_same() -> None:
    document = document_of(Rude())
    assert document["type"].endswith(":Rude")
    assert "RuntimeError" in document["message"]


def test_long_texts_are_cut_and_surrogates_made_sound() -> None:
    document = document_of(ValueError("x\ud800" * MAX_TRACEBACK))
    assert len(document["message"]) < 10 * MAX_MESSAGE
    assert len(document["traceback"]) < 10 * MAX_TRACEBACK
    document["message"].encode()
    document["traceback"].encode()


def test_frames_of_the_caller_can_be_left_out() -> None:
    def inner() -> None:
        raise ValueError

    with pytest.raises(ValueError) as raised:
        inner()
    assert "test_frames_of" in error_document(raised.value)["traceback"]
    assert "test_frames_of" not in error_document(raised.value, skip=1)["traceback"]
    assert "in inner" in error_document(raised.value, skip=99)["traceback"]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        KeyError("key"),
        OSError(2, "No such file"),
        FileNotFoundError("gone"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "why"),
        SyntaxError("bad"),
        StopIteration("end"),
        ImportError("module"),
        AttributeError("attribute"),
        sample_tasks.NotFoundError("page", code=404),
        psq.SerializationError("it"),
        psq.MessageTooLarge("big", size=1, limit=2),
        psq.TaskFailed("inner"),
        psq.TaskCancelled("inner"),
    ],
)
def test_what_is_raised_is_task_failed_and_the_original_type(error: Exception) -> None:
    rebuilt = rebuild(document_of(error), "abc")
    assert isinstance(rebuilt, psq.TaskFailed)
    assert isinstance(rebuilt, type(error))
    assert type(rebuilt).__name__ == type(error).__name__
    assert str(rebuilt) == str(error)
    assert rebuilt.task_id == "abc"
    assert rebuilt.error_type == f"{type(error).__module__}:{type(error).__qualname__}"
    with pytest.raises(type(error)):
        raise rebuilt
    shown = "".join(traceback.format_exception(rebuilt))
    assert "The task abc failed in its worker:" in shown
    assert "in document_of" in shown


def test_one_that_failed_in_a_task_that_waited_for_it_travels_on() -> None:
    inner = rebuild(document_of(sample_tasks.NotFoundError("page", code=404)), "inner")
    outer = rebuild(document_of(inner), "outer")
    assert isinstance(outer, sample_tasks.NotFoundError)
    assert outer.task_id == "outer"


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"type": "nobody.has:ThisError", "message": "m"}, "nobody.has.ThisError: m"),
        ({"type": "builtins:SystemExit", "message": "3"}, "SystemExit: 3"),
        ({"type": "builtins:KeyboardInterrupt", "message": ""}, "KeyboardInterrupt"),
        ({"type": "builtins:ExceptionGroup", "message": "m"}, "ExceptionGroup: m"),
        ({"type": "builtins:int", "message": "m"}, "int: m"),
        ({"type": "psq.task:Retry", "message": "m"}, "psq.task.Retry: m"),
        ({"type": "psq.errors:TaskInterrupted", "message": "m"}, "psq.errors.TaskInterrupted: m"),
        ({"type": f"{__name__}:Rigid", "message": "m"}, f"{__name__}.Rigid: m"),
        ({"type": f"{__name__}:Closed", "message": "m"}, f"{__name__}.Closed: m"),
        ({"type": None, "message": None}, ""),
        ({}, ""),
    ],
)
def test_where_the_type_cannot_be_had_it_is_task_failed_with_its_name(document: dict[str, Any], text: str) -> None:
    rebuilt = rebuild(document, "abc")
    assert str(rebuilt) == text
    assert isinstance(rebuilt, psq.TaskFailed)
    assert not isinstance(rebuilt, psq.Retry)  # would make a task that waits for another run again


class Meta(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("made by its own constructor")


class Rigid(Exception):
    def __init_subclass__(cls) -> None:
        raise TypeError("no subclasses")


class Closed(Exception):
    __slots__ = ("__weakref__",)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise ValueError("no")


class Peculiar(Exception):
    def __new__(cls, one: int, two: int) -> Any:
        return super().__new__(cls, one, two)

    def __init__(self, one: int, two: int) -> None:
        raise AssertionError("its own code runs")


def test_none_of_its_own_code_runs() -> None:
    rebuilt = rebuild({"type": f"{__name__}:Peculiar", "message": "m", "traceback": "t"}, "abc")
    assert isinstance(rebuilt, Peculiar)
    assert str(rebuilt) == "m"


def test_a_rebuilt_error_can_be_pickled() -> None:
    rebuilt = rebuild(document_of(sample_tasks.NotFoundError("page", code=404)), "abc")
    back = pickle.loads(pickle.dumps(rebuilt))
    assert isinstance(back, sample_tasks.NotFoundError)
    assert (back.task_id, str(back), back.traceback) == ("abc", str(rebuilt), rebuilt.traceback)


def test_one_class_is_made_for_each_original() -> None:
    document = document_of(ValueError("a"))
    assert type(rebuild(document, "a")) is type(rebuild(document, "b"))


def test_a_cancelled_task_says_so() -> None:
    error = cancelled("abc")
    assert isinstance(error, psq.TaskCancelled)
    assert error.task_id == "abc"
