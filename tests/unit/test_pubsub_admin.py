"""Topics and subscriptions are made and looked at: against a server that the test plays."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from google.iam.v1 import iam_policy_pb2  # type: ignore[import-untyped]
from google.pubsub_v1 import types

from psq.brokers import pubsub_maker, pubsub_move
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
        account: Who we are.
    """

    account = "web@shop.iam.gserviceaccount.com"

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
    monkeypatch.setattr(pubsub_move, "REPAIR_JITTER", 0.0)
    monkeypatch.setattr(pubsub_move, "OTHERS", (0.0, 0.0))
    monkeypatch.setattr(pubsub_maker, "MAX_RATE", 1e6)
    return Admin(server, NAMES)  # type: ignore[arg-type]


def found(topic: str = "", **fields: Any) -> Callable[[Any], Any]:
    def answer(request: Any) -> Any:
        fields.setdefault("ack_deadline_seconds", 10)
        return wire.Subscription(name=request.subscription, topic=topic or NAMES.topic("work"), **fields)

    return answer


def held(*documents: bytes) -> list[Any]:
    """Answers to pulls from a subscription that holds these."""
    messages = [{"message": {"data": one, "message_id": str(n)}, "ack_id": str(n)} for n, one in enumerate(documents)]
    answer = types.PullResponse.pb()
    return [answer(received_messages=messages), *(answer() for _ in range(pubsub_move.EMPTY_ANSWERS))]


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
    server.answers["GetSubscription"] = CallError("PERMISSION_DENIED", "pubsub.subscriptions.get")
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


@pytest.mark.parametrize("creates", [CallError("ALREADY_EXISTS", ""), DENIED])
def test_a_look_that_is_denied_does_not_stop_receiving_and_one_warning_says_what_grants_it(
    server: Server, admin: Admin, creates: CallError
) -> None:
    server.answers["CreateSubscription"] = creates
    server.answers["GetSubscription"] = CallError("PERMISSION_DENIED", "User not authorized")
    (warning,) = admin.declare(QUEUE)
    assert "psq-work-shared can't be looked at" in warning
    assert warning.endswith(
        "the permission pubsub.subscriptions.get is missing: gcloud projects add-iam-policy-binding p "
        "--member=serviceAccount:web@shop.iam.gserviceaccount.com --role=roles/pubsub.viewer"
    )
    assert admin.declare(QueueSpec("other")) == []  # the same once more would be noise


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


# who may not make anything


def test_a_publisher_that_may_not_create_refuses_to_publish_to_what_would_swallow_it(
    server: Server, admin: Admin
) -> None:
    server.answers["CreateSubscription"] = DENIED
    server.answers["GetSubscription"] = CallError("NOT_FOUND", "")
    with pytest.raises(BrokerRefused, match=r"does not exist, and we may not make it: gcloud pubsub topics create"):
        admin.ensure(QUEUE, 10.0)
    server.answers["GetSubscription"] = found("_deleted-topic_")
    with pytest.raises(BrokerRefused, match=r"topic of .* was deleted: .*gcloud pubsub subscriptions delete"):
        admin.ensure(QUEUE, 10.0)
    server.answers["GetSubscription"] = found()
    admin.ensure(QUEUE, 10.0)


def test_a_deleted_topic_whose_subscription_could_not_be_made_again_is_left_as_it_is(
    server: Server, admin: Admin
) -> None:
    server.answers["CreateSubscription"] = DENIED  # while topics could be made, and subscriptions deleted
    server.answers["GetSubscription"] = found("_deleted-topic_")
    with pytest.raises(BrokerRefused, match="we may not make it"):
        admin.declare(QUEUE)
    assert server.calls == ["CreateSubscription", "GetSubscription"]


def test_what_a_deleted_topic_held_is_not_touched_where_we_may_not_publish_it_again(
    server: Server, admin: Admin
) -> None:
    server.answers["CreateSubscription"] = CallError("ALREADY_EXISTS", "")
    server.answers["GetSubscription"] = found("_deleted-topic_")
    server.answers["Pull"] = held(b"{}")
    server.answers["Publish"] = CallError("PERMISSION_DENIED", "User not authorized")
    with pytest.raises(BrokerRefused, match="may not make it anew"):
        admin.declare(QUEUE)
    assert "DeleteSubscription" not in server.calls
    assert (server.calls[-1], server.requests[-1].ack_deadline_seconds) == ("ModifyAckDeadline", 0)


def test_what_was_taken_out_of_a_deleted_topics_subscription_is_published_however_long_the_service_is_away(
    server: Server, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub_move, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(pubsub_move, "LONGEST_PAUSE", 0.0)
    away = CallError("UNAVAILABLE", "away")
    server.answers["CreateSubscription"] = [CallError("ALREADY_EXISTS", ""), away, away, None]
    server.answers["GetSubscription"] = found("_deleted-topic_")
    server.answers["Pull"] = held(b"{}")
    server.answers["Publish"] = [None, away, away, None]
    (warning,) = admin.declare(QUEUE)
    assert "made anew" in warning
    assert server.calls[-6:] == ["CreateSubscription"] * 3 + ["Publish"] * 3


@pytest.mark.parametrize("other", ["has done it", "is about to make it", "has died"])
def test_who_makes_the_new_topic_moves_what_the_old_one_held_and_others_wait_for_it(
    server: Server, admin: Admin, other: str
) -> None:
    """Else one may delete the subscription that the other has just made."""
    old, new, gone = found("_deleted-topic_"), found(), CallError("NOT_FOUND", "")
    server.answers["CreateSubscription"] = CallError("ALREADY_EXISTS", "")
    server.answers["CreateTopic"] = CallError("ALREADY_EXISTS", "")
    server.answers["Pull"] = held()
    server.answers["GetSubscription"] = [
        old,
        old,
        *{"has done it": [new], "is about to make it": [gone]}.get(other, [old] * 2),
    ]
    admin.declare(QUEUE)
    assert ("DeleteSubscription" in server.calls) is (other == "has died")
    assert (server.calls[-1] == "CreateSubscription") is (other != "has done it")


@pytest.mark.parametrize(
    "faster", ["while it is pulled from", "as the lease is extended", "before the look", "after it"]
)
def test_what_was_taken_is_published_again_when_another_daemon_was_faster_with_the_rest(
    server: Server, admin: Admin, faster: str
) -> None:
    """Each of two daemons has a part of what the old subscription held; one deletes it."""
    gone = CallError("NOT_FOUND", "Resource not found")
    old, new = found("_deleted-topic_"), found()
    server.answers["CreateSubscription"] = CallError("ALREADY_EXISTS", "")
    server.answers["GetSubscription"] = [old, old, new]
    server.answers["Pull"] = held(b"{}")
    if faster == "while it is pulled from":
        server.answers["Pull"][1] = gone
    elif faster == "as the lease is extended":
        server.answers["Pull"][1] = server.answers["ModifyAckDeadline"] = gone
    elif faster == "before the look":
        server.answers["GetSubscription"] = [old, old, gone]
    else:
        server.answers["GetSubscription"], server.answers["DeleteSubscription"] = old, gone
    admin.declare(QUEUE)
    assert server.calls[-2:] == ["CreateSubscription", "Publish"]
    assert [message.data for message in server.requests[-1].messages] == [b"{}"]


# declare: check and never


@pytest.fixture
def checking(server: Server, admin: Admin) -> Admin:
    return Admin(server, NAMES, "check")  # type: ignore[arg-type]


@pytest.fixture
def trusting(server: Server, admin: Admin) -> Admin:
    return Admin(server, NAMES, "never")  # type: ignore[arg-type]


def test_check_looks_and_makes_nothing(server: Server, checking: Admin) -> None:
    server.answers["GetSubscription"] = found(ack_deadline_seconds=20, labels={"psq": "queue"})
    (warning,) = checking.declare(QUEUE)
    assert "ack deadline is 20 s" in warning  # nor changes anything
    checking.ensure(QUEUE, 10.0)
    checking.ensure(QueueSpec("fleet", broadcast=True), 10.0)
    checking.ensure_dead("work", 10.0)
    assert server.calls == ["GetSubscription", "GetSubscription", "GetTopic", "GetSubscription"]


def test_check_says_what_is_missing_and_what_makes_it(server: Server, checking: Admin) -> None:
    server.answers["GetSubscription"] = server.answers["GetTopic"] = CallError("NOT_FOUND", "")
    fleet = QueueSpec("fleet", broadcast=True)
    for ask, names in (
        (lambda: checking.declare(QUEUE), "create psq-work-shared"),
        (lambda: checking.ensure(QUEUE, 10.0), "create psq-work-shared"),
        (lambda: checking.topic_only(fleet), "create psq-fleet"),
        (lambda: checking.ensure_dead("work", 10.0), "create psq-work-dead"),
        (lambda: checking.mend(QUEUE), "create psq-work-shared"),
    ):
        with pytest.raises(BrokerRefused, match=names):
            ask()
    server.answers["GetSubscription"] = found("_deleted-topic_")
    with pytest.raises(BrokerRefused, match="gcloud pubsub subscriptions delete psq-work-shared"):
        checking.declare(QUEUE)
    assert not {"CreateTopic", "CreateSubscription", "DeleteSubscription"} & set(server.calls)


def test_never_asks_for_nothing_before_it_is_used(server: Server, trusting: Admin) -> None:
    assert trusting.declare(QUEUE) == []
    trusting.ensure(QUEUE, 10.0)
    trusting.ensure_dead("work", 10.0)
    trusting.ensure(QueueSpec("fleet", broadcast=True), 10.0)
    assert server.calls == []


@pytest.mark.parametrize("mode", ["check", "never"])
def test_a_publish_that_is_told_not_found_says_which_commands_make_it(
    server: Server, checking: Admin, mode: str
) -> None:
    admin = Admin(server, NAMES, mode)  # type: ignore[arg-type]
    server.answers["GetSubscription"] = CallError("NOT_FOUND", "")
    with pytest.raises(BrokerRefused, match=rf"`declare: {mode}` makes nothing: gcloud pubsub topics create psq-work"):
        admin.repair(QUEUE, 10.0)
    server.answers["GetSubscription"] = found("_deleted-topic_")
    with pytest.raises(BrokerRefused, match="gcloud pubsub subscriptions delete psq-work-shared"):
        admin.repair(QUEUE, 10.0)
    with pytest.raises(BrokerRefused, match="create psq-work-dead"):
        admin.ensure_dead("work", 10.0, gone=True)
    assert "CreateTopic" not in server.calls


def test_never_looks_at_what_is_gone_while_it_is_served(server: Server, trusting: Admin) -> None:
    server.answers["GetSubscription"] = CallError("NOT_FOUND", "")
    with pytest.raises(BrokerRefused, match="`declare: never` makes nothing: gcloud"):
        trusting.mend(QUEUE)
    server.answers["GetSubscription"] = found()
    assert trusting.mend(QUEUE)
    server.answers["GetSubscription"] = CallError("PERMISSION_DENIED", "")
    assert not trusting.mend(QUEUE)


# what we may


def allowed(*permissions: str) -> Callable[[Any], Any]:
    def answer(request: Any) -> Any:
        return iam_policy_pb2.TestIamPermissionsResponse(
            permissions=[one for one in request.permissions if one in permissions]
        )

    return answer


def test_a_daemon_that_may_not_receive_or_publish_is_told_the_role(server: Server, admin: Admin) -> None:
    server.answers["TestIamPermissions"] = allowed("pubsub.topics.publish", "pubsub.subscriptions.consume")
    assert admin.lacks(QUEUE) == []
    server.answers["TestIamPermissions"] = allowed()
    publish, consume = admin.lacks(QUEUE) or []
    assert "pubsub.topics.publish is missing" in publish
    assert publish.endswith("--role=roles/pubsub.publisher")
    assert "pubsub.subscriptions.consume is missing" in consume
    assert consume.endswith("--role=roles/pubsub.subscriber")
    assert [request.resource for request in server.requests[-2:]] == [NAMES.topic("work"), NAMES.subscription(QUEUE)]


def test_where_nothing_at_all_is_allowed_it_is_told_that_the_queue_may_not_be_there(server: Server) -> None:
    """Nobody has a permission on what does not exist, and Pub/Sub does not tell the difference."""
    trusting = Admin(server, NAMES, "never")  # type: ignore[arg-type]
    server.answers["TestIamPermissions"] = allowed("pubsub.topics.publish")
    (consume,) = trusting.lacks(QUEUE) or []
    assert consume.endswith("--role=roles/pubsub.subscriber (or it does not exist: psq declare -c FILE makes it)")


def test_workers_of_a_broadcast_queue_make_their_copies_so_they_must_be_allowed_to(server: Server) -> None:
    fleet, member = QueueSpec("fleet", broadcast=True), QueueSpec("fleet", broadcast=True, member="a-0")
    server.answers["TestIamPermissions"] = allowed("pubsub.topics.publish", "pubsub.subscriptions.consume")
    (line,) = Admin(server, NAMES).lacks(fleet) or []  # type: ignore[arg-type]
    assert "pubsub.topics.attachSubscription" in line
    assert Admin(server, NAMES, "check").lacks(fleet) == []  # type: ignore[arg-type]
    assert Admin(server, NAMES).lacks(member) == []  # type: ignore[arg-type]


def test_a_server_that_can_not_tell_what_we_may_is_no_refusal(server: Server, admin: Admin) -> None:
    server.answers["TestIamPermissions"] = CallError("UNIMPLEMENTED", "")
    assert admin.lacks(QUEUE) is None
    server.answers["TestIamPermissions"] = CallError("UNAVAILABLE", "")
    with pytest.raises(BrokerUnavailable):
        admin.lacks(QUEUE)


def test_calls_are_spread_out_to_fifty_a_second(server: Server, admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub_maker, "MAX_RATE", 50.0)
    now = [100.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

        @staticmethod
        def sleep(seconds: float) -> None:
            now[0] += seconds

    monkeypatch.setattr(pubsub_maker, "time", Clock)
    for number in range(500):
        admin.ensure(QueueSpec(f"q{number}"), 1000.0)
    assert 8.0 < now[0] - 100.0 < 12.0
