"""What an operator does on Pub/Sub beside psq: makes, changes and deletes topics and subscriptions."""

from __future__ import annotations

from typing import Any

from psq.brokers import pubsub_wire as wire
from psq.brokers.pubsub import PubSubBroker
from psq.google.calls import Method
from psq.google.errors import CallError

__all__ = ["Operator"]


class Operator:
    """May do everything.

    Args:
        broker: Of the project that is worked on.
    """

    def __init__(self, broker: PubSubBroker) -> None:
        self.broker = broker

    def call(self, method: Any, request: Any) -> Any:
        return self.broker.channel.call(method, request, 30.0)

    def topic(self, name: str = "work") -> str:
        return f"projects/{self.broker.project}/topics/psq-{name}"

    def subscription(self, name: str = "work-shared") -> str:
        return f"projects/{self.broker.project}/subscriptions/psq-{name}"

    def found(self, name: str = "work-shared") -> Any:
        """A subscription; None where it is not there."""
        try:
            return self.call(wire.GET_SUBSCRIPTION, wire.GetSubscriptionRequest(subscription=self.subscription(name)))
        except CallError as error:
            if error.code == "NOT_FOUND":
                return None
            raise

    def make_topic(self, name: str = "work") -> None:
        self.call(wire.CREATE_TOPIC, wire.Topic(name=self.topic(name)))

    def delete_topic(self, name: str = "work") -> None:
        from google.protobuf import empty_pb2
        from google.pubsub_v1 import types

        request = types.DeleteTopicRequest.pb()
        path = "/google.pubsub.v1.Publisher/DeleteTopic"
        self.call(Method(path, request.SerializeToString, empty_pb2.Empty.FromString), request(topic=self.topic(name)))

    def make_subscription(self, name: str = "work", **fields: Any) -> None:
        """A queue's topic and subscription, as psq would not make them."""
        self.make_topic(name)
        made = wire.Subscription(name=self.subscription(f"{name}-shared"), topic=self.topic(name), **fields)
        self.call(wire.CREATE_SUBSCRIPTION, made)

    def delete_subscription(self, name: str = "work-shared") -> None:
        self.call(wire.DELETE_SUBSCRIPTION, wire.DeleteSubscriptionRequest(subscription=self.subscription(name)))

    def close(self) -> None:
        self.broker.close()
