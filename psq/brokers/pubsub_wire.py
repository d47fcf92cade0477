"""Pub/Sub on the wire: raw protobuf messages and methods; no proto-plus, which costs more than the call itself.

Importing this loads the messages of Google's client library.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any
from urllib.parse import quote

from psq.errors import MissingDependency
from psq.google.channel import Method, load_grpc
from psq.google.lazily import put_off

load_grpc()  # before Google's library imports it: in a patched process the order matters

try:
    from google.iam.v1 import iam_policy_pb2  # type: ignore[import-untyped]
    from google.protobuf import empty_pb2

    put_off("google.pubsub_v1")
    types: Any = import_module("google.pubsub_v1.types")  # `from` would ask the package
except ImportError as error:
    raise MissingDependency("Pub/Sub needs Google's client library: pip install google-cloud-pubsub") from error

__all__ = [
    "ACKNOWLEDGE",
    "CREATE_SUBSCRIPTION",
    "CREATE_TOPIC",
    "DELETE_SUBSCRIPTION",
    "GET_SUBSCRIPTION",
    "GET_TOPIC",
    "LIST_SUBSCRIPTIONS",
    "MODIFY_ACK_DEADLINE",
    "PUBLISH",
    "PULL",
    "TEST_IAM_PERMISSIONS",
    "UPDATE_SUBSCRIPTION",
    "AcknowledgeRequest",
    "DeleteSubscriptionRequest",
    "GetSubscriptionRequest",
    "GetTopicRequest",
    "ListSubscriptionsRequest",
    "ModifyAckDeadlineRequest",
    "PublishRequest",
    "PubsubMessage",
    "PullRequest",
    "Subscription",
    "TestIamPermissionsRequest",
    "Topic",
    "UpdateSubscriptionRequest",
    "routing",
]


def _pb(name: str) -> Any:
    return getattr(types, name).pb()


AcknowledgeRequest = _pb("AcknowledgeRequest")
DeleteSubscriptionRequest = _pb("DeleteSubscriptionRequest")
GetSubscriptionRequest = _pb("GetSubscriptionRequest")
GetTopicRequest = _pb("GetTopicRequest")
ListSubscriptionsRequest = _pb("ListSubscriptionsRequest")
ModifyAckDeadlineRequest = _pb("ModifyAckDeadlineRequest")
PublishRequest = _pb("PublishRequest")
PubsubMessage = _pb("PubsubMessage")
PullRequest = _pb("PullRequest")
Subscription = _pb("Subscription")
TestIamPermissionsRequest: Any = iam_policy_pb2.TestIamPermissionsRequest
Topic = _pb("Topic")
UpdateSubscriptionRequest = _pb("UpdateSubscriptionRequest")


def _method(service: str, name: str, request: Any, response: Any, *, waits: bool = False) -> Method:
    return Method(f"/google.pubsub.v1.{service}/{name}", request.SerializeToString, response.FromString, waits)


PUBLISH = _method("Publisher", "Publish", PublishRequest, _pb("PublishResponse"))
CREATE_TOPIC = _method("Publisher", "CreateTopic", Topic, Topic)
GET_TOPIC = _method("Publisher", "GetTopic", GetTopicRequest, Topic)
PULL = _method("Subscriber", "Pull", PullRequest, _pb("PullResponse"), waits=True)
ACKNOWLEDGE = _method("Subscriber", "Acknowledge", AcknowledgeRequest, empty_pb2.Empty)
MODIFY_ACK_DEADLINE = _method("Subscriber", "ModifyAckDeadline", ModifyAckDeadlineRequest, empty_pb2.Empty)
CREATE_SUBSCRIPTION = _method("Subscriber", "CreateSubscription", Subscription, Subscription)
GET_SUBSCRIPTION = _method("Subscriber", "GetSubscription", GetSubscriptionRequest, Subscription)
UPDATE_SUBSCRIPTION = _method("Subscriber", "UpdateSubscription", UpdateSubscriptionRequest, Subscription)
DELETE_SUBSCRIPTION = _method("Subscriber", "DeleteSubscription", DeleteSubscriptionRequest, empty_pb2.Empty)
LIST_SUBSCRIPTIONS = _method(
    "Subscriber", "ListSubscriptions", ListSubscriptionsRequest, _pb("ListSubscriptionsResponse")
)

#: Of topics and subscriptions alike; needs no permission itself.
TEST_IAM_PERMISSIONS = Method(
    "/google.iam.v1.IAMPolicy/TestIamPermissions",
    TestIamPermissionsRequest.SerializeToString,
    iam_policy_pb2.TestIamPermissionsResponse.FromString,
)


def routing(field: str, name: str) -> tuple[tuple[str, str], ...]:
    """The header by which Google's front routes a request.

    Args:
        field: The request's field that names the resource, ``topic``.
        name: Its full name.
    """
    return (("x-goog-request-params", f"{field}={quote(name, safe='')}"),)
