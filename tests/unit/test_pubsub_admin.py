"""Topics and subscriptions are made and looked at: against a server that the test plays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from psq.brokers import pubsub_admin
from psq.brokers import pubsub_wire as wire
from psq.brokers.base import QueueSpec
from psq.brokers.pubsub_admin import Admin
from psq.brokers.pubsub_names import Names
from psq.errors import BrokerRefused, BrokerUnavailable
from psq.google.calls import Method
from psq.google.errors import CallError

QUEUE = QueueSpec("work")
NAMES = Names("p")
DENIED = CallError("PERMISSION_DENIED", "pubsub.subscriptions.create")


class Server:
    """Answers by method name: an error, a response, or a function of the request. Others succeed.

    Attributes:
        calls: Names of the methods that were called.
        requests: Their requests.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.calls: list[str] = []
        self.requests: list[Any] = []

    def call(
        self, method: Method, request: Any, timeout: float, *, metadata: Sequence[tuple[str, str]] | None = None
    ) -> Any:
        name = method.path.rpartition("/")[2]
        self.calls.append(name)
        self.requests.append(request)
        answer = self.answers.get(name)
        if isinstance(answer, list):
            answer = answer.pop(0) if answer else None
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def admin(server: Server, monkeypatch: pytest.MonkeyPatch) -> Admin:
    monkeypatch.setattr(pubsub_admin, "REPAIR_JITTER", 0.0)
    monkeypatch.setattr(pubsub_admin, "MAX_RATE", 1e6)
    return Admin(server, NAMES)  # type: ignore[arg-type]


def found(topic: str = "", **fields: Any) -> Callable[[Any], Any]:
    def answer(request: Any) -> Any:
        fields.setdefault("ack_deadline_seconds", 10)
        return wire.Subscription(name=request.subscription, topic=topic or NAMES.topic("work"), **fields)

    return answer


def test_a_subscription_is_asked_for_first_and_its_topic_only_where_that_is_missing(
    server: Server, admin: Admin
) -> None:
    admin.ensure(QUEUE, 10.0)
    assert server.calls == ["CreateSubscription"]
    server.calls.clear()
    server.answers["CreateSubscription"] = [CallError("NOT_FOUND", "topic"), None]
    admin.ensure(QUEUE, 10.0)
    assert server.calls == ["CreateSubscription", "CreateTopic", "CreateSubscription"]


def test_what_exists_is_taken_as_yes_by_a_publisher(server: Server, admin: Admin) -> None:
    server.answers["CreateSubscription"] = CallError("ALREADY_EXISTS", "")
    admin.ensure(QUEUE, 10.0)
    assert server.calls == ["CreateSubscription"]
    server.answers["CreateTopic"] = CallError("ALREADY_EXISTS", "")
    admin.ensure(QueueSpec("fleet", broadcast=True), 10.0)
    assert server.calls == ["CreateSubscription", "CreateTopic"]


def test_a_topic_that_is_gone_again_is_tried_again_later(server: Server, admin: Admin) -> None:
    server.answers["CreateSubscription"] = CallError("NOT_FOUND", "topic")
    with pytest.raises(CallError) as caught:
        admin.ensure(QUEUE, 10.0)
    assert caught.value.transient
    assert server.calls == ["CreateSubscription", "CreateTopic", "CreateSubscription"]


def test_thirty_one_days_are_asked_for_and_seven_taken_where_the_server_refuses_more(
    server: Server, admin: Admin
) -> None:
    def create(request: Any) -> Any:
        if request.message_retention_duration.seconds > 7 * 86400:
            raise CallError("INVALID_ARGUMENT", "message_retention_duration out of bounds")
        return request

    server.answers["CreateSubscription"] = create
    admin.ensure(QUEUE, 10.0)
    admin.ensure(QueueSpec("other"), 10.0)
    days = [request.message_retention_duration.seconds / 86400 for request in server.requests]
    assert days == [31, 7, 7]


def test_where_nothing_may_be_made_a_publisher_goes_on_with_one_warning_that_has_the_commands(
    server: Server, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers["CreateSubscription"] = DENIED
    admin.ensure(QUEUE, 10.0)
    admin.ensure(QueueSpec("other"), 10.0)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "gcloud pubsub topics create psq-work" in record.getMessage()


def test_a_publisher_is_told_what_is_transient_and_what_is_refused(server: Server, admin: Admin) -> None:
    server.answers["CreateSubscription"] = CallError("UNAVAILABLE", "away")
    with pytest.raises(CallError):
        admin.ensure(QUEUE, 10.0)
    server.answers["CreateSubscription"] = CallError("NOT_FOUND", "no project p")
    server.answers["CreateTopic"] = CallError("INVALID_ARGUMENT", "project")
    with pytest.raises(BrokerRefused, match="queue work"):
        admin.ensure(QUEUE, 10.0)


def test_a_daemon_that_makes_its_subscription_has_nothing_to_warn_of(server: Server, admin: Admin) -> None:
    assert admin.declare(QueueSpec("work", ack_deadline=33.0)) == []
    assert server.requests[0].ack_deadline_seconds == 33
    assert admin.ack_deadline(QueueSpec("work", ack_deadline=33.0)) == 33.0


def test_a_daemon_looks_at_what_exists(server: Server, admin: Admin) -> None:
    server.answers["CreateSubscription"] = CallError("ALREADY_EXISTS", "")
    server.answers["GetSubscription"] = found(enable_exactly_once_delivery=True)
    with pytest.raises(BrokerRefused, match="exactly-once"):
        admin.declare(QUEUE)


def test_a_look_that_is_denied_does_not_stop_receiving(server: Server, admin: Admin) -> None:
    server.answers["CreateSubscription"] = CallError("ALREADY_EXISTS", "")
    server.answers["GetSubscription"] = CallError("PERMISSION_DENIED", "pubsub.subscriptions.get")
    assert admin.declare(QUEUE) == []
    server.answers["CreateSubscription"] = DENIED
    (warning,) = admin.declare(QUEUE)
    assert "can't be looked at" in warning


def test_a_daemon_that_may_not_create_uses_what_a_deployer_made(server: Server, admin: Admin) -> None:
    server.answers["CreateSubscription"] = DENIED
    server.answers["GetSubscription"] = found()
    assert admin.declare(QUEUE) == []


def test_a_daemon_that_may_not_create_what_is_missing_says_what_to_type(server: Server, admin: Admin) -> None:
    server.answers["CreateSubscription"] = DENIED
    server.answers["GetSubscription"] = CallError("NOT_FOUND", "")
    with pytest.raises(BrokerRefused, match=r"gcloud pubsub topics create psq-work .*subscriptions create"):
        admin.declare(QUEUE)


def test_a_deleted_topic_that_may_not_be_made_anew_says_what_to_type(server: Server, admin: Admin) -> None:
    server.answers["GetSubscription"] = found("_deleted-topic_")
    for creates, topic in ((DENIED, None), (CallError("ALREADY_EXISTS", ""), DENIED)):
        server.answers["CreateSubscription"], server.answers["CreateTopic"] = creates, topic
        with pytest.raises(BrokerRefused, match="gcloud pubsub subscriptions delete psq-work-shared"):
            admin.declare(QUEUE)


def test_when_another_daemon_mended_a_deleted_topic_first_nothing_is_deleted(server: Server, admin: Admin) -> None:
    server.answers["CreateSubscription"] = CallError("ALREADY_EXISTS", "")
    server.answers["GetSubscription"] = [found("_deleted-topic_"), found()]
    admin.declare(QUEUE)
    assert "DeleteSubscription" not in server.calls


def test_another_ack_deadline_is_changed_where_we_made_it_and_used_where_we_may_not(
    server: Server, admin: Admin
) -> None:
    queue = QueueSpec("work", ack_deadline=60.0)
    server.answers["CreateSubscription"] = CallError("ALREADY_EXISTS", "")
    server.answers["GetSubscription"] = found(ack_deadline_seconds=10, labels={"psq": "queue"})
    assert admin.declare(queue) == []
    assert server.requests[-1].subscription.ack_deadline_seconds == 60
    assert list(server.requests[-1].update_mask.paths) == ["ack_deadline_seconds"]
    assert admin.ack_deadline(queue) == 60.0
    server.answers["UpdateSubscription"] = CallError("PERMISSION_DENIED", "")
    (warning,) = admin.declare(queue)
    assert "10 s" in warning
    assert admin.ack_deadline(queue) == 10.0


def test_a_daemon_is_told_when_the_service_is_away(server: Server, admin: Admin) -> None:
    server.answers["CreateSubscription"] = CallError("UNAVAILABLE", "away")
    with pytest.raises(BrokerUnavailable):
        admin.declare(QUEUE)


def test_a_members_subscription_lives_a_day_and_is_deleted_without_complaint_if_it_is_gone(
    server: Server, admin: Admin
) -> None:
    member = QueueSpec("fleet", broadcast=True, member="here-0")
    admin.declare(member)
    request = server.requests[0]
    assert request.expiration_policy.ttl.seconds == request.message_retention_duration.seconds == 86400
    server.answers["DeleteSubscription"] = CallError("NOT_FOUND", "")
    admin.delete_member(member)
    assert server.requests[-1].subscription == NAMES.subscription(member)


def test_calls_are_spread_out_to_fifty_a_second(server: Server, admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub_admin, "MAX_RATE", 50.0)
    now = [100.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

        @staticmethod
        def sleep(seconds: float) -> None:
            now[0] += seconds

    monkeypatch.setattr(pubsub_admin, "time", Clock)
    for number in range(500):
        admin.ensure(QueueSpec(f"q{number}"), 1000.0)
    assert 8.0 < now[0] - 100.0 < 12.0
