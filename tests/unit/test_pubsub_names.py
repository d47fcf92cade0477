"""What things are called on Pub/Sub, and the URL that leads there."""

from __future__ import annotations

import pytest

from psq.brokers.base import QueueSpec
from psq.brokers.pubsub_names import Names, Place, place_from, place_from_url
from psq.errors import ConfigError

SHARED = QueueSpec("default")
MEMBER = QueueSpec("fleet", broadcast=True, member="web-1.example-0")


def test_names_of_a_shared_queue() -> None:
    names = Names("shop", "staging-")
    assert names.topic("default") == "projects/shop/topics/staging-psq-default"
    assert names.subscription(SHARED) == "projects/shop/subscriptions/staging-psq-default-shared"
    assert names.source(SHARED) == names.subscription(SHARED)


def test_names_of_a_broadcast_queue() -> None:
    names = Names("shop")
    assert names.subscription(MEMBER) == "projects/shop/subscriptions/psq-fleet-web-1.example-0"
    assert names.source(MEMBER) == (
        "projects/shop/subscriptions/psq-fleet-web-1.example-0 projects/shop/topics/psq-fleet web-1.example-0"
    )


def test_names_of_dead_letters_lead_back_to_their_queue() -> None:
    names = Names("shop", "x-")
    assert names.dead_topic("default") == "projects/shop/topics/x-psq-default-dead"
    assert names.queue_of_dead(names.dead_subscription("default")) == "default"
    assert names.queue_of_dead(names.subscription(SHARED)) is None
    assert names.queue_of_dead("projects/shop/subscriptions/y-psq-default-dead") is None


@pytest.mark.parametrize("name", ["default", "a", "1st", "A.b_c~d+e%f-g", "x" * 244])
def test_a_queue_may_be_called_what_a_topic_may(name: str) -> None:
    Names("shop").check(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "letters, digits"),
        ("a b", "letters, digits"),
        ("a/b", "letters, digits"),
        ("späti", "letters, digits"),
        ("x\n", "letters, digits"),
        ("jobs-dead", "-dead"),
        ("jobs-shared", "-shared"),
        ("x" * 245, "245 characters"),
    ],
)
def test_a_name_that_pubsub_refuses_is_refused_with_what_is_valid(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Names("shop").check(name)


def test_a_prefix_counts_for_the_length_of_names() -> None:
    Names("shop", "x" * 50).check("y" * 194)
    with pytest.raises(ConfigError, match="takes 194"):
        Names("shop", "x" * 50).check("y" * 195)


def test_a_broadcast_queue_without_a_member_can_not_be_received_from() -> None:
    with pytest.raises(ConfigError, match="needs a member"):
        Names("shop").subscription(QueueSpec("fleet", broadcast=True))


@pytest.mark.parametrize("member", ["shared", "dead", "a b", "x" * 250])
def test_a_member_that_can_not_name_a_subscription_is_refused(member: str) -> None:
    with pytest.raises(ConfigError, match="can't name a copy"):
        Names("shop").subscription(QueueSpec("fleet", broadcast=True, member=member))


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("pubsub://shop", Place("shop")),
        ("pubsub://shop/", Place("shop")),
        ("pubsub://example.com:shop?prefix=a-", Place("example.com:shop", prefix="a-")),
        (
            "pubsub://shop?endpoint=europe-west1-pubsub.googleapis.com&prefix=shop-staging-",
            Place("shop", "europe-west1-pubsub.googleapis.com:443", True, "shop-staging-"),
        ),
        ("pubsub://shop?endpoint=https://10.0.0.1:8443", Place("shop", "10.0.0.1:8443")),
        ("pubsub://shop?endpoint=http://[::1]:8085", Place("shop", "[::1]:8085", False)),
        ("pubsub://shop?endpoint=http://localhost", Place("shop", "localhost:8085", False)),
    ],
)
def test_a_url_says_where_pubsub_is_and_says_it_back(url: str, place: Place) -> None:
    assert place_from_url(url, {}) == place
    assert place_from_url(place.url, {}) == place


def test_the_emulators_variable_is_used_where_no_endpoint_is_given() -> None:
    environ = {"PUBSUB_EMULATOR_HOST": "localhost:8085"}
    assert place_from_url("pubsub://shop", environ) == Place("shop", "localhost:8085", False)
    assert place_from_url("pubsub://shop?endpoint=other.example", environ) == Place("shop", "other.example:443")
    assert place_from_url(place_from_url("pubsub://shop", environ).url, {}).address == "localhost:8085"


@pytest.mark.parametrize(
    "url",
    [
        "pubsub://",
        "pubsub:shop",
        "pubsub://Shop",
        "pubsub://shop/topic",
        "pubsub://shop?endpoind=x",
        "pubsub://shop?endpoint=a b",
        "pubsub://shop?endpoint=ftp://x",
        "pubsub://shop?prefix=1-",
        "pubsub://shop?prefix=goog-",
        "pubsub://shop?prefix=a/b",
        "sqlite:///x",
    ],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        place_from_url(url, {})


def test_a_project_must_be_one() -> None:
    with pytest.raises(ConfigError, match="project id"):
        place_from("", environ={})
