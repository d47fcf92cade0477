"""The gate that holds calls back while a process forks."""

from __future__ import annotations

from psq.google.errors import CallError
from psq.google.gate import Gate


class FakeCall:
    cancelled = False

    def cancel(self) -> bool:
        self.cancelled = True
        return True


def test_calls_begin_in_their_order_when_the_gate_opens() -> None:
    gate, begun = Gate(), []
    gate.closed = True
    for number in range(3):
        gate.hold(lambda number=number: begun.append(number), lambda response, error: None)  # type: ignore[misc]
    assert begun == []
    gate.open()
    assert begun == [0, 1, 2]
    gate.open()
    assert begun == [0, 1, 2]


def test_a_call_that_comes_as_the_gate_was_opened_begins_at_once() -> None:
    gate, begun = Gate(), []
    gate.hold(lambda: begun.append(1), lambda response, error: None)
    assert begun == [1]


def test_a_call_that_is_cancelled_behind_the_gate_never_begins() -> None:
    gate, begun, ended = Gate(), [], []
    gate.closed = True
    call = gate.hold(lambda: begun.append(1), lambda response, error: ended.append(error))
    call.cancel()
    gate.open()
    assert begun == []
    (error,) = ended
    assert isinstance(error, CallError)
    assert (error.code, error.sent) == ("CANCELLED", False)


def test_a_call_that_began_when_the_gate_opened_is_cancelled_itself() -> None:
    gate, fake = Gate(), FakeCall()
    gate.closed = True
    call = gate.hold(lambda: fake, lambda response, error: None)
    gate.open()
    call.cancel()
    assert fake.cancelled


def test_a_gate_that_closes_again_while_it_lets_calls_through_keeps_the_others_for_its_next_opening() -> None:
    """Somebody else forks, and waits for the call that began: the rest may not be tried over and over."""
    gate, begun = Gate(), []

    def start(number: int) -> None:
        if gate.closed:
            assert len(tried) < 10, "tried over and over"
            tried.append(number)
            gate.hold(lambda: start(number), lambda response, error: None)
            return
        begun.append(number)
        gate.closed = number == 0

    tried: list[int] = []
    gate.closed = True
    for number in range(3):
        gate.hold(lambda number=number: start(number), lambda response, error: None)  # type: ignore[misc]
    gate.open()
    assert begun == [0]
    gate.open()
    assert begun == [0, 1, 2]


def test_a_call_that_can_not_begin_ends_with_its_error_and_holds_up_no_other() -> None:
    gate, begun, ended = Gate(), [], []

    def broken() -> None:
        raise PermissionError("key.json")

    gate.closed = True
    gate.hold(broken, lambda response, error: ended.append(error))
    gate.hold(lambda: begun.append(1), lambda response, error: None)
    gate.open()
    assert begun == [1]
    (error,) = ended
    assert isinstance(error, CallError)
    assert (error.transient, error.sent) == (False, False)
    assert "key.json" in str(error)
