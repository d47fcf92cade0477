"""A naive client: what a program does that was only ever tried on an emulator."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import google.auth.transport.grpc
import google.auth.transport.requests
import grpc
from google.iam.v1 import iam_policy_pb2  # type: ignore[import-untyped]
from google.oauth2 import service_account

from psq.brokers import pubsub_wire as wire
from psq.google.calls import Method
from psq.storages.datastore_api import pb
from tests.front.certificates import CERTIFICATE
from tests.front.client import Front

__all__ = ["Naive"]

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
TEST_PERMISSIONS = Method(
    "/google.iam.v1.IAMPolicy/TestIamPermissions",
    iam_policy_pb2.TestIamPermissionsRequest.SerializeToString,
    iam_policy_pb2.TestIamPermissionsResponse.FromString,
)


class Naive:
    """One channel with gRPC's defaults, blocking calls, one try each; a topic and a subscription of its own.

    Args:
        front: The front.
        account: File of a service account; default: the one that may everything.
        token: A token to send for ever, instead of what google-auth fetches.
        like: Use the topic and subscription of another.
    """

    def __init__(self, front: Front, account: str = "", *, token: str | None = None, like: Naive | None = None) -> None:
        self.project: str = like.project if like else f"n-{uuid.uuid4().hex[:12]}"
        self.topic = f"projects/{self.project}/topics/naive"
        self.subscription = f"projects/{self.project}/subscriptions/naive"
        account = account or front.environment()["GOOGLE_APPLICATION_CREDENTIALS"]
        self.credentials: Any = service_account.Credentials.from_service_account_file(account, scopes=SCOPES)  # type: ignore[no-untyped-call]
        if token is None:
            plugin = google.auth.transport.grpc.AuthMetadataPlugin(  # type: ignore[no-untyped-call]
                self.credentials, google.auth.transport.requests.Request()
            )
            call_credentials = grpc.metadata_call_credentials(plugin)
        else:
            call_credentials = grpc.access_token_call_credentials(token)
        secure = grpc.ssl_channel_credentials(Path(front.folder, CERTIFICATE).read_bytes())
        self.channel = grpc.secure_channel(
            front.endpoint,
            grpc.composite_channel_credentials(secure, call_credentials),
            options=[("grpc.use_local_subchannel_pool", 1)],
        )

    def call(self, method: Method, request: Any, timeout: float = 20.0) -> Any:
        """A blocking call."""
        return self.future(method, request, timeout).result()

    def future(self, method: Method, request: Any, timeout: float = 60.0) -> Any:
        """A call in flight."""
        invoke = self.channel.unary_unary(
            method.path, request_serializer=method.serialize, response_deserializer=method.deserialize
        )
        return invoke.future(request, timeout=timeout)

    def make(self, ack_deadline: int = 10) -> Naive:
        """Make topic and subscription."""
        self.call(wire.CREATE_TOPIC, wire.Topic(name=self.topic))
        self.call(
            wire.CREATE_SUBSCRIPTION,
            wire.Subscription(name=self.subscription, topic=self.topic, ack_deadline_seconds=ack_deadline),
        )
        return self

    def publish(self, *data: bytes, timeout: float = 20.0) -> None:
        """Publish one batch."""
        messages = [wire.PubsubMessage(data=one) for one in data]
        self.call(wire.PUBLISH, wire.PublishRequest(topic=self.topic, messages=messages), timeout)

    def pull_request(self, most: int = 1000, *, immediately: bool = False) -> Any:
        """A request for messages."""
        return wire.PullRequest(subscription=self.subscription, max_messages=most, return_immediately=immediately)

    def pull(self, most: int = 1000, timeout: float = 20.0, *, immediately: bool = False) -> list[bytes]:
        """The messages of one pull, acked."""
        found = self.call(wire.PULL, self.pull_request(most, immediately=immediately), timeout).received_messages
        if found:
            ids = [one.ack_id for one in found]
            self.call(wire.ACKNOWLEDGE, wire.AcknowledgeRequest(subscription=self.subscription, ack_ids=ids))
        return [one.message.data for one in found]

    def pull_all(self, count: int) -> list[bytes]:
        """So many messages, as a patient client gets them."""
        found: list[bytes] = []
        while len(found) < count:
            found += self.pull()
        return found

    def commit(self, *mutations: Any) -> Any:
        """Write to Datastore."""
        request = pb().CommitRequest(project_id=self.project, mode=pb().NON_TRANSACTIONAL, mutations=mutations)
        method = Method(pb().commit.path, pb().CommitRequest.SerializeToString, pb().commit.deserialize)
        return self.call(method, request)

    def key(self, name: str) -> Any:
        """A key of Datastore."""
        key = pb().Key()
        key.partition_id.project_id = self.project
        element = key.path.add()
        element.kind, element.name = "Naive", name
        return key

    def upsert(self, name: str, text: str = "", *, indexed: bool = False) -> Any:
        """A mutation."""
        mutation = pb().Mutation()
        mutation.upsert.key.CopyFrom(self.key(name))
        value = mutation.upsert.properties["text"]
        value.string_value, value.exclude_from_indexes = text, not indexed
        return mutation

    def permissions(self, resource: str, *asked: str) -> set[str]:
        """Those of the permissions that we have."""
        request = iam_policy_pb2.TestIamPermissionsRequest(resource=resource, permissions=asked)
        return set(self.call(TEST_PERMISSIONS, request).permissions)

    def close(self) -> None:
        """Let go."""
        self.channel.close()
