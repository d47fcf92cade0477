"""What is said about subscriptions that somebody else made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from psq.brokers import pubsub_wire as wire
from psq.brokers.base import QueueSpec
from psq.brokers.pubsub_advice import differences, gcloud_create, gcloud_repair
from psq.brokers.pubsub_names import Names

NAMES = Names("shop")
QUEUE = QueueSpec("work")
TOPIC = NAMES.topic("work")


def subscription(**fields: Any) -> Any:
    found = wire.Subscription(name=NAMES.subscription(QUEUE), topic=TOPIC, ack_deadline_seconds=10, **fields)
    found.message_retention_duration.seconds = 7 * 86400
    found.expiration_policy.SetInParent()
    return found


def test_what_we_make_ourselves_has_no_differences() -> None:
    assert differences(QUEUE, TOPIC, subscription()) == ([], [])


def push(found: Any) -> None:
    found.push_config.push_endpoint = "https://example.com/hook"


def bigquery(found: Any) -> None:
    found.bigquery_config.table = "p.d.t"


def detached(found: Any) -> None:
    found.detached = True


def ordered(found: Any) -> None:
    found.enable_message_ordering = True


def exactly_once(found: Any) -> None:
    found.enable_exactly_once_delivery = True


def foreign(found: Any) -> None:
    found.topic = "projects/shop/topics/other"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (push, "pushes"),
        (bigquery, "BigQuery"),
        (detached, "detached"),
        (ordered, "ordering"),
        (exactly_once, "exactly-once"),
        (foreign, "topics/other"),
    ],
)
def test_what_can_not_be_used_is_an_error(change: Callable[[Any], None], says: str) -> None:
    found = subscription()
    change(found)
    errors, warnings = differences(QUEUE, TOPIC, found)
    assert len(errors) == 1
    assert says in errors[0]
    assert warnings == []


def dead_letters(found: Any) -> None:
    found.dead_letter_policy.dead_letter_topic = "projects/shop/topics/dead"
    found.dead_letter_policy.max_delivery_attempts = 7


def retries(found: Any) -> None:
    found.retry_policy.minimum_backoff.seconds = 20


def filtered(found: Any) -> None:
    found.filter = 'attributes.a = "b"'


def short(found: Any) -> None:
    found.message_retention_duration.seconds = 600


def expires(found: Any) -> None:
    found.expiration_policy.ttl.seconds = 31 * 86400


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dead_letters, "after 7 deliveries"),
        (retries, "after 20 s"),
        (filtered, "filter"),
        (short, "600 s"),
        (expires, "31 days"),
    ],
)
def test_what_changes_how_a_queue_works_is_a_warning_that_says_how(change: Callable[[Any], None], says: str) -> None:
    found = subscription()
    change(found)
    errors, warnings = differences(QUEUE, TOPIC, found)
    assert errors == []
    assert len(warnings) == 1
    assert says in warnings[0]


def test_the_members_subscription_may_expire() -> None:
    member = QueueSpec("fleet", broadcast=True, member="here-0")
    found = wire.Subscription(name=NAMES.subscription(member), topic=NAMES.topic("fleet"))
    found.message_retention_duration.seconds = found.expiration_policy.ttl.seconds = 86400
    assert differences(member, NAMES.topic("fleet"), found) == ([], [])


def test_the_commands_name_topic_subscription_and_project() -> None:
    line = gcloud_create(NAMES, QUEUE)
    for part in (
        "topics create psq-work",
        "subscriptions create psq-work-shared",
        "--topic=psq-work",
        "--project=shop",
    ):
        assert part in line
    assert "--expiration-period=never" in line
    assert gcloud_repair(NAMES, QUEUE).startswith("gcloud pubsub subscriptions delete psq-work-shared")
    assert "psq declare -c FILE" in gcloud_repair(NAMES, QUEUE)  # which loses nothing of what it still holds
    assert "subscriptions" not in gcloud_create(NAMES, QueueSpec("fleet", broadcast=True))
