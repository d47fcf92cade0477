"""Which permission a method needs, and how Google says that it is missing."""

from __future__ import annotations

from typing import Any

from google.iam.v1 import iam_policy_pb2  # type: ignore[import-untyped]

__all__ = ["DENIED", "of_method", "test_permissions"]

#: What PERMISSION_DENIED says, by service.
DENIED = {
    "pubsub": "User not authorized to perform this action.",
    "datastore": "Missing or insufficient permissions.",
}

_METHODS: dict[str, tuple[str, ...]] = {
    "Publish": ("pubsub.topics.publish",),
    "CreateTopic": ("pubsub.topics.create",),
    "UpdateTopic": ("pubsub.topics.update",),
    "GetTopic": ("pubsub.topics.get",),
    "ListTopics": ("pubsub.topics.list",),
    "ListTopicSubscriptions": ("pubsub.topics.get",),
    "DeleteTopic": ("pubsub.topics.delete",),
    "DetachSubscription": ("pubsub.topics.detachSubscription",),
    "CreateSubscription": ("pubsub.subscriptions.create", "pubsub.topics.attachSubscription"),
    "GetSubscription": ("pubsub.subscriptions.get",),
    "UpdateSubscription": ("pubsub.subscriptions.update",),
    "ModifyPushConfig": ("pubsub.subscriptions.update",),
    "ListSubscriptions": ("pubsub.subscriptions.list",),
    "DeleteSubscription": ("pubsub.subscriptions.delete",),
    "Pull": ("pubsub.subscriptions.consume",),
    "StreamingPull": ("pubsub.subscriptions.consume",),
    "Acknowledge": ("pubsub.subscriptions.consume",),
    "ModifyAckDeadline": ("pubsub.subscriptions.consume",),
    "Seek": ("pubsub.subscriptions.consume",),
    "Lookup": ("datastore.entities.get",),
    "RunQuery": ("datastore.entities.get", "datastore.entities.list"),
    "RunAggregationQuery": ("datastore.entities.get", "datastore.entities.list"),
    "BeginTransaction": ("datastore.databases.get",),
    "Rollback": ("datastore.databases.get",),
    "AllocateIds": ("datastore.entities.allocateIds",),
    "ReserveIds": ("datastore.entities.allocateIds",),
}
_MUTATIONS = {
    "insert": ("datastore.entities.create",),
    "update": ("datastore.entities.update",),
    "upsert": ("datastore.entities.create", "datastore.entities.update"),
    "delete": ("datastore.entities.delete",),
}


def of_method(name: str, request: Any) -> tuple[str, ...]:
    """The permissions that a call needs.

    Args:
        name: Of the method.
        request: Parsed, where the front parses it; else None.
    """
    if name != "Commit":
        return _METHODS.get(name, ())
    kinds = {mutation.WhichOneof("operation") for mutation in request.mutations}
    return tuple(sorted({permission for kind in kinds for permission in _MUTATIONS.get(kind, ())}))


def test_permissions(request: bytes) -> iam_policy_pb2.TestIamPermissionsRequest:
    """The question, parsed."""
    return iam_policy_pb2.TestIamPermissionsRequest.FromString(request)


def granted(permissions: list[str]) -> bytes:
    """The answer."""
    return bytes(iam_policy_pb2.TestIamPermissionsResponse(permissions=permissions).SerializeToString())
