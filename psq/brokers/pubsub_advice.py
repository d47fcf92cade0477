"""What to say about a subscription that we did not make, and the gcloud line that mends it. Pure."""

from __future__ import annotations

from typing import Any

from psq.brokers.base import QueueSpec
from psq.brokers.pubsub_names import Names

__all__ = ["DELETED_TOPIC", "differences", "gcloud_create", "gcloud_create_dead", "gcloud_repair"]

#: What Pub/Sub gives as the topic of a subscription whose topic was deleted.
DELETED_TOPIC = "_deleted-topic_"
#: Retention below which a warning says so, seconds.
WARN_RETENTION = 7 * 86400


def differences(queue: QueueSpec, topic: str, found: Any) -> tuple[list[str], list[str]]:
    """Compare a subscription with what we would have made.

    Args:
        queue: The queue.
        topic: Full name of its topic.
        found: The subscription (raw protobuf).

    Returns:
        Errors (it can't be used) and warnings (it works differently).
    """
    errors: list[str] = []
    warnings: list[str] = []
    if found.topic != topic:
        errors.append(f"it belongs to the topic {found.topic}, not to {topic}")
    if found.push_config.push_endpoint:
        errors.append("it pushes to an endpoint, and psqd pulls: gcloud pubsub subscriptions modify-push-config")
    elif found.HasField("bigquery_config") or found.HasField("cloud_storage_config"):
        errors.append("it exports to BigQuery or Cloud Storage, and psqd pulls")
    if found.detached:
        errors.append("it is detached from its topic")
    if found.enable_message_ordering:
        errors.append("message ordering is on, which psqd does not support yet")
    if found.enable_exactly_once_delivery:
        errors.append("exactly-once delivery is on, which psqd does not support yet")
    if found.dead_letter_policy.dead_letter_topic:
        policy = found.dead_letter_policy
        warnings.append(
            f"it has a dead-letter policy: after {policy.max_delivery_attempts or 5} deliveries Pub/Sub itself moves a "
            f"task to {policy.dead_letter_topic}, and each drain of a worker counts as one"
        )
    if found.HasField("retry_policy"):
        least = found.retry_policy.minimum_backoff
        seconds = least.seconds + least.nanos / 1e9 or 10
        warnings.append(f"it has a retry policy: what a worker gives back comes again after {seconds:g} s, not at once")
    if found.filter:
        warnings.append(f"it has a filter: tasks that do not match {found.filter!r} are never run")
    kept = found.message_retention_duration.seconds
    if kept and not queue.broadcast and kept < WARN_RETENTION:
        warnings.append(f"it keeps messages for {kept} s only: older tasks are lost")
    ttl = found.expiration_policy.ttl.seconds
    if ttl and not queue.broadcast:
        warnings.append(f"it deletes itself when no worker receives from it for {ttl // 86400 or 1} days")
    return errors, warnings


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def gcloud_create(names: Names, queue: QueueSpec) -> str:
    """The commands with which a deployer makes a queue."""
    topic = _short(names.topic(queue.name))
    line = f"gcloud pubsub topics create {topic} --project={names.project}"
    if queue.broadcast and not queue.member:
        return line
    expires = "1d" if queue.broadcast and not queue.lasting else "never"
    return _with_subscription(
        line,
        f"{_short(names.subscription(queue))} --topic={topic} --ack-deadline={int(queue.ack_deadline)} "
        f"--message-retention-duration={'1d' if queue.broadcast else '31d'} --expiration-period={expires}",
        names,
    )


def gcloud_create_dead(names: Names, queue: str) -> str:
    """The commands with which a deployer makes what keeps a queue's dead letters."""
    topic = _short(names.dead_topic(queue))
    return _with_subscription(
        f"gcloud pubsub topics create {topic} --project={names.project}",
        f"{_short(names.dead_subscription(queue))} --topic={topic} --ack-deadline=60 "
        "--message-retention-duration=31d --expiration-period=never",
        names,
    )


def _with_subscription(line: str, subscription: str, names: Names) -> str:
    return f"{line} ; gcloud pubsub subscriptions create {subscription} --project={names.project}"


def gcloud_repair(names: Names, queue: QueueSpec) -> str:
    """The commands that make a subscription anew whose topic was deleted."""
    return (
        f"gcloud pubsub subscriptions delete {_short(names.subscription(queue))} --project={names.project} ; "
        + gcloud_create(names, queue)
        + " (which drops what it still holds; psq declare -c FILE moves that)"
    )
