"""Deletes what scripts/smoke_gcp.py has made, and says what is left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psq
from psq.google.channel import Method
from psq.google.errors import CallError
from psq.storages.base import Storage

__all__ = ["delete_entities", "delete_topics", "names"]

TIMEOUT = 30.0
KINDS = ("psq-task", "psq-part", "psq-dead", "psq-eta", "psq-claim")


def names(project: str, prefix: str, queues: list[str]) -> Iterator[tuple[str, str]]:
    """Topic and subscription of each queue, and of its dead letters where the storage can't keep them."""
    at = f"projects/{project}"
    for queue in queues:
        for topic, subscription in ((f"psq-{queue}", f"psq-{queue}-shared"), (f"psq-{queue}-dead",) * 2):
            yield f"{at}/topics/{prefix}{topic}", f"{at}/subscriptions/{prefix}{subscription}"


def delete_topics(client: psq.Client, project: str, prefix: str, queues: list[str]) -> list[str]:
    """Delete topics and subscriptions; that one is not there is no error.

    Returns:
        A gcloud line for each that could not be deleted.
    """
    from google.protobuf import empty_pb2
    from google.pubsub_v1 import types

    from psq.brokers import pubsub_wire as wire

    delete_topic = Method(
        "/google.pubsub.v1.Publisher/DeleteTopic",
        types.DeleteTopicRequest.pb().SerializeToString,
        empty_pb2.Empty.FromString,
    )
    channel: Any = client.broker.channel  # type: ignore[attr-defined]
    left = []
    for topic, subscription in names(project, prefix, queues):
        requests: list[tuple[str, str, Method, Any]] = [
            ("subscriptions", subscription, wire.DELETE_SUBSCRIPTION, wire.DeleteSubscriptionRequest),
            ("topics", topic, delete_topic, types.DeleteTopicRequest.pb()),
        ]
        for what, name, method, request in requests:
            field = what[:-1]
            try:
                channel.call(method, request(**{field: name}), TIMEOUT, metadata=wire.routing(field, name))
            except CallError as error:
                if error.code != "NOT_FOUND":
                    left.append(f"gcloud pubsub {what} delete {name}    # {error}")
    return left


def delete_entities(storage: Storage | None) -> list[str]:
    """Delete all of a namespace that is ours alone.

    Returns:
        A line for each kind of which something is left.
    """
    left: list[str] = []
    if storage is None or storage.scheme != "datastore":
        return left
    opened: Any = storage._open()  # type: ignore[attr-defined]
    for kind in KINDS:
        try:
            while found := _some(opened.api, kind):
                opened.heads._delete(kind, found)
        except psq.PsqError as error:
            left.append(f"entities of kind {kind} in namespace {opened.api.namespace}: {error}")
    with contextlib.suppress(psq.PsqError):
        storage.close()
    return left


def _some(api: Any, kind: str) -> list[str]:
    """Key names of up to 5,000 entities."""
    request = api.query(kind, 5000)
    request.query.projection.add().property.name = "__key__"
    return [result.entity.key.path[0].name for result in api.results(request, f"listing {kind}")]
