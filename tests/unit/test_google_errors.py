"""What a gRPC status means: transient or not, sent or not, and which of our errors it becomes."""

from __future__ import annotations

import pytest

from psq.errors import BrokerRefused, BrokerUnavailable, PublishUnknown, StorageRefused, StorageUnavailable
from psq.google.errors import CallError, broker_error, is_transient, publish_error, storage_error


@pytest.mark.parametrize(
    "code",
    ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL", "CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "UNKNOWN"],
)
def test_what_goes_away_by_itself_is_tried_again_and_never_refused(code: str) -> None:
    error = CallError(code, "x")
    assert is_transient(error)
    assert isinstance(broker_error(error, "doing"), BrokerUnavailable)
    assert isinstance(storage_error(error, "doing"), StorageUnavailable)


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION"])
def test_what_the_server_refuses_is_refused(code: str) -> None:
    error = CallError(code, "no")
    assert not is_transient(error)
    assert not error.sent
    assert error.from_server
    assert isinstance(broker_error(error, "doing"), BrokerRefused)
    refused = storage_error(error, "doing")
    assert isinstance(refused, StorageRefused)
    assert refused.everything == (code != "INVALID_ARGUMENT")  # the others would refuse any record


@pytest.mark.parametrize(
    ("code", "details", "sent"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses; last error: …Connection refused", False),
        ("UNAVAILABLE", "errors resolving nosuch.invalid:1: [field:hostname lookup error…]", False),
        ("UNAVAILABLE", "DNS resolution failed for x", False),
        ("UNAVAILABLE", "RST_STREAM with error code REFUSED_STREAM", False),
        ("UNAVAILABLE", "Stream removed (RST_STREAM (Received RST_STREAM with error code 7))", False),
        ("UNAVAILABLE", "Getting metadata from plugin failed with error: …", False),
        ("UNAVAILABLE", "Stream removed (Socket closed)", True),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", True),
        ("CANCELLED", "Channel closed!", True),
        ("INTERNAL", "Received RST_STREAM with error code 2", True),
        ("RESOURCE_EXHAUSTED", "quota", False),
        ("UNAUTHENTICATED", "token", False),
    ],
)
def test_whether_a_request_may_have_taken_effect(code: str, details: str, sent: bool) -> None:
    assert CallError(code, details).sent is sent


def test_a_publish_that_may_have_been_accepted_is_unknown_and_names_its_task() -> None:
    error = publish_error(CallError("DEADLINE_EXCEEDED", ""), "publishing", task_id="t1", maybe_sent=True)
    assert isinstance(error, PublishUnknown)
    assert error.task_id == "t1"
    assert "same task id" in str(error)


def test_an_earlier_request_that_was_sent_counts_when_the_last_one_was_not() -> None:
    last = CallError("UNAVAILABLE", "failed to connect to all addresses")
    assert isinstance(publish_error(last, "publishing", task_id="t", maybe_sent=True), PublishUnknown)
    assert isinstance(publish_error(last, "publishing", task_id="t", maybe_sent=False), BrokerUnavailable)


def test_a_publish_that_never_left_is_unavailable_also_when_its_time_ran_out_while_it_waited() -> None:
    assert isinstance(publish_error(TimeoutError("over"), "x", task_id="t", maybe_sent=False), BrokerUnavailable)
    assert isinstance(publish_error(TimeoutError("over"), "x", task_id="t", maybe_sent=True), PublishUnknown)


def test_a_refused_publish_is_refused_even_if_an_earlier_request_may_have_passed() -> None:
    error = publish_error(CallError("PERMISSION_DENIED", "no"), "x", task_id="t", maybe_sent=True)
    assert isinstance(error, BrokerRefused)


def test_a_token_that_is_not_taken_is_tried_again_but_ends_as_a_refusal_that_says_what_to_do() -> None:
    error = CallError("UNAUTHENTICATED", "invalid token")
    assert is_transient(error)
    translated = broker_error(error, "pulling")
    assert isinstance(translated, BrokerRefused)
    assert "gcloud auth application-default login" in str(translated)


def test_our_own_errors_pass_through_and_foreign_ones_are_named() -> None:
    ours = BrokerUnavailable("x")
    assert broker_error(ours, "doing") is ours
    assert "KeyError" in str(broker_error(KeyError("x"), "doing"))
