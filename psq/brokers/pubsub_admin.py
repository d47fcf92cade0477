"""Whether topics and subscriptions are made, looked at, or taken for right: `declare`. Everything here blocks."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from psq.brokers import pubsub_permissions as permissions
from psq.brokers.base import QueueSpec
from psq.brokers.pubsub_advice import DELETED_TOPIC, differences, gcloud_create, gcloud_create_dead, gcloud_repair
from psq.brokers.pubsub_maker import LABELS, Maker
from psq.brokers.pubsub_move import move
from psq.brokers.pubsub_names import AUTO, CHECK, NEVER, Names
from psq.errors import BrokerRefused
from psq.google.channel import Channel
from psq.google.errors import CallError, broker_error

__all__ = ["Admin"]

#: Seconds for one thing that is asked for by itself.
DEFAULT_TIMEOUT = 10.0
#: Nobody has a permission on what is not there.
UNSEEN = " (or it does not exist: psq declare -c FILE makes it)"

log = logging.getLogger("psq")


class Admin:
    """Makes sure that topics and subscriptions exist. Safe from any thread and greenlet; all methods block.

    Args:
        channel: The service's channel.
        names: What things are called.
        declare: ``auto``: what is missing is made. ``check``: what is missing is told, nothing is made.
            ``never``: nothing is asked for before it is used.
    """

    def __init__(self, channel: Channel, names: Names, declare: str = AUTO) -> None:
        self._channel, self._names, self.mode = channel, names, declare
        self._maker = Maker(channel, names)
        self._warned: set[str] = set()
        self._deadlines: dict[str, float] = {}  # subscription -> ack deadline that it has

    def ack_deadline(self, queue: QueueSpec) -> float:
        """Seconds of the first lease: what the subscription has, as far as we know."""
        return self._deadlines.get(self._names.subscription(queue), queue.ack_deadline)

    @property
    def project(self) -> str:
        """Full name of the project."""
        return f"projects/{self._names.project}"

    def unusable(self, queue: QueueSpec, found: Any) -> str:
        """Why a subscription that was looked at can't be used, "" where it can."""
        return "; ".join(differences(queue, self._names.topic(queue.name), found)[0])

    def missing(self, permission: str) -> str:
        """Say which permission is missing, with the gcloud line that grants it."""
        return permissions.missing(permission, self._names.project, self._channel.account)

    # for publishers

    def ensure(self, queue: QueueSpec, timeout: float) -> None:
        """What a publisher needs: a topic, and a subscription, so that nothing is swallowed.

        A broadcast queue's subscriptions are made by its members. Where we may
        not create anything, a deployer did; where we may not look either: one warning, and on.

        Raises:
            CallError: Transient ones alone: try again.
            BrokerRefused: It can't be made, or is missing and we make nothing.
        """
        if self.mode == NEVER:
            return
        deadline = time.monotonic() + timeout
        topic = self._names.topic(queue.name)
        why = "`declare: check` makes nothing"
        try:
            if self.mode == AUTO:
                try:
                    if queue.broadcast:
                        self._maker.create_topic(topic, deadline)
                    else:
                        self._maker.create(queue, deadline)
                    return
                except CallError as error:
                    if error.code != "PERMISSION_DENIED":
                        raise
                    why = "we may not make it"
            seen = (
                self._sees_topic(queue, topic, why, deadline) if queue.broadcast else self._sees(queue, why, deadline)
            )
        except CallError as error:
            if error.transient:
                raise
            raise broker_error(error, f"making the queue {queue.name}") from error
        if not seen:
            self._warn_blind(queue)

    def repair(self, queue: QueueSpec, timeout: float) -> bool:
        """Look whether a queue's topic was deleted below it, and make it anew; True where something was made.

        Called when a publish was told NOT_FOUND.

        Raises:
            CallError, BrokerRefused: As `ensure`.
        """
        deadline = time.monotonic() + timeout
        topic = self._names.topic(queue.name)
        denied: CallError | None = None
        try:
            if self.mode == AUTO:
                if queue.broadcast and not queue.member:
                    return self._maker.create_topic(topic, deadline)
                if self._maker.create(queue, deadline):
                    return True
                found = self.look(queue, deadline)
                if found is not None and found.topic == DELETED_TOPIC:
                    self._move(queue, topic, found.name, deadline)
                    return True
                return False
        except CallError as error:
            if error.code != "PERMISSION_DENIED":
                raise
            denied = error
        why = "we may not make it" if denied else f"`declare: {self.mode}` makes nothing"
        raise BrokerRefused(f"{topic} does not exist, and {why}: {self._commands(queue, deadline)}") from denied

    def ensure_dead(self, queue: str, timeout: float, *, gone: bool = False) -> None:
        """The topic and subscription that keep a queue's dead letters.

        Args:
            queue: The queue's name.
            timeout: Seconds.
            gone: A publish was told NOT_FOUND.
        """
        deadline = time.monotonic() + timeout
        topic, commands = self._names.dead_topic(queue), gcloud_create_dead(self._names, queue)
        if self.mode == AUTO:
            try:
                self._maker.create_dead(queue, deadline)
                return
            except CallError as error:
                if error.code != "PERMISSION_DENIED":
                    raise
                if not gone:
                    self._warn(f"{topic} can't be made here ({error.details}): a deployer must have: {commands}")
        if gone:
            raise BrokerRefused(f"{topic}, for dead letters, does not exist: {commands}")
        if self.mode == CHECK:
            try:
                self._maker.get(self._names.dead_subscription(queue), deadline)
            except CallError as error:
                if error.code == "NOT_FOUND":
                    raise BrokerRefused(f"{topic}, for dead letters, has no subscription: {commands}") from error
                if error.code != "PERMISSION_DENIED":
                    raise

    # for daemons

    def declare(self, queue: QueueSpec, timeout: float = 60.0) -> list[str]:
        """What a consumer needs, with a look at what exists. See `Broker.declare`."""
        if self.mode == NEVER:
            return []
        return self._had(queue, time.monotonic() + timeout)[1]

    def mend(self, queue: QueueSpec, timeout: float = 60.0) -> bool:
        """As `declare`, for what is gone while it is served; with ``declare: never`` it is looked at, too.

        Returns:
            True where the subscription was made or seen; False where we may do neither.
        """
        return self._had(queue, time.monotonic() + timeout)[0]

    def _had(self, queue: QueueSpec, deadline: float) -> tuple[bool, list[str]]:
        topic, subscription = self._names.topic(queue.name), self._names.subscription(queue)
        why, may = f"`declare: {self.mode}` makes nothing", self.mode == AUTO
        try:
            if may:
                try:
                    if self._maker.create(queue, deadline):
                        self._deadlines[subscription] = queue.ack_deadline
                        return True, []
                except CallError as error:
                    if error.code != "PERMISSION_DENIED":
                        raise
                    why, may = f"we may not make it ({error.details})", False
            found = self._sees(queue, why, deadline, may_move=may)
            if found is None:
                return False, self._blind(subscription)
            if found.topic == DELETED_TOPIC:
                self._move(queue, topic, subscription, deadline)
                return True, [f"its topic had been deleted: {subscription} was made anew"]
            return True, self._compared(queue, topic, found, deadline)
        except CallError as error:
            raise broker_error(error, f"declaring the queue {queue.name}") from error

    def topic_only(self, queue: QueueSpec, timeout: float = 30.0) -> list[str]:
        """Declare a broadcast queue without any member."""
        try:
            self.ensure(queue, timeout)
        except CallError as error:
            raise broker_error(error, f"declaring the queue {queue.name}") from error
        return []

    def look(self, queue: QueueSpec, deadline: float) -> Any:
        """The subscription as it is, or None where we may not look.

        Raises:
            CallError: It is not there, or can't be reached.
        """
        name = self._names.subscription(queue)
        try:
            found = self._maker.get(name, deadline)
        except CallError as error:
            if error.code == "PERMISSION_DENIED":
                return None
            raise
        if found.ack_deadline_seconds:
            self._deadlines[name] = float(found.ack_deadline_seconds)
        return found

    def lacks(self, queue: QueueSpec, timeout: float = DEFAULT_TIMEOUT) -> list[str] | None:
        """See `Broker.lacks`."""
        deadline = time.monotonic() + timeout
        asked: dict[str, Sequence[str]] = {self._names.topic(queue.name): [permissions.PUBLISH]}
        if not queue.broadcast or queue.member:
            asked[self._names.subscription(queue)] = [permissions.CONSUME]
        elif self.mode == AUTO:  # its workers make their copies
            asked[self._names.topic(queue.name)] = [permissions.PUBLISH, permissions.ATTACH]
        lacking: list[str] = []
        try:
            for resource, wanted in asked.items():
                has = self._maker.allowed(resource, wanted, deadline)
                unseen = UNSEEN if self.mode == NEVER and not has else ""
                lacking += [self.missing(permission) + unseen for permission in wanted if permission not in has]
        except CallError as error:
            if error.code in ("UNIMPLEMENTED", "PERMISSION_DENIED"):
                return None
            raise broker_error(error, f"asking what we may do with the queue {queue.name}") from error
        return lacking

    def delete_member(self, queue: QueueSpec, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Delete a broadcast member's subscription; that it is not there is no error."""
        name = self._names.subscription(queue)
        try:
            self._maker.delete(name, time.monotonic() + timeout)
        except CallError as error:
            if error.code != "NOT_FOUND":
                raise broker_error(error, f"deleting {name}") from error

    # the steps

    def _sees(self, queue: QueueSpec, why: str, deadline: float, *, may_move: bool = False) -> Any:
        """The subscription, which we do not make; None where we may not look.

        Raises:
            BrokerRefused: It is not there, or, unless it may be moved, its topic was deleted.
        """
        subscription = self._names.subscription(queue)
        try:
            found = self.look(queue, deadline)
        except CallError as error:
            if error.code == "NOT_FOUND":
                raise BrokerRefused(
                    f"{subscription} does not exist, and {why}: {gcloud_create(self._names, queue)}"
                ) from error
            raise
        if found is not None and found.topic == DELETED_TOPIC and not may_move:
            raise BrokerRefused(
                f"the topic of {subscription} was deleted: it never gets a message again, and {why} anew: "
                f"{gcloud_repair(self._names, queue)}"
            )
        return found

    def _sees_topic(self, queue: QueueSpec, topic: str, why: str, deadline: float) -> bool:
        try:
            self._maker.get_topic(topic, deadline)
        except CallError as error:
            if error.code == "NOT_FOUND":
                raise BrokerRefused(
                    f"{topic} does not exist, and {why}: {gcloud_create(self._names, queue)}"
                ) from error
            if error.code == "PERMISSION_DENIED":
                return False
            raise
        return True

    def _commands(self, queue: QueueSpec, deadline: float) -> str:
        """What makes the topic of a queue, whose subscription may still be there."""
        if not queue.broadcast:
            try:
                found = self.look(queue, deadline)
            except CallError:
                found = None
            if found is not None and found.topic == DELETED_TOPIC:
                return gcloud_repair(self._names, queue)
        return gcloud_create(self._names, queue)

    def _compared(self, queue: QueueSpec, topic: str, found: Any, deadline: float) -> list[str]:
        errors, warnings = differences(queue, topic, found)
        if errors:
            raise BrokerRefused(f"{found.name} can't be used: " + "; ".join(errors))
        if found.ack_deadline_seconds != int(queue.ack_deadline):
            warnings += self._set_ack_deadline(queue, found, deadline)
        return warnings

    def _set_ack_deadline(self, queue: QueueSpec, found: Any, deadline: float) -> list[str]:
        """Ours, made by a publisher with another ack deadline: ours to change. Others' stay as they are."""
        has = found.ack_deadline_seconds
        if found.labels.get("psq") == LABELS["psq"] and self.mode == AUTO:
            try:
                self._maker.set_ack_deadline(found.name, int(queue.ack_deadline), deadline)
            except CallError as error:
                if error.transient:
                    raise
            else:
                self._deadlines[found.name] = queue.ack_deadline
                return []
        return [f"its ack deadline is {has} s, not {queue.ack_deadline:g} s: {has} s is used for the first lease"]

    def _move(self, queue: QueueSpec, topic: str, name: str, deadline: float) -> None:
        try:
            move(self._channel, self._maker, queue, topic, name, deadline)
        except CallError as error:
            if error.code != "PERMISSION_DENIED":
                raise
            raise BrokerRefused(
                f"the topic of {name} was deleted, and we may not make it anew ({error.details}): "
                f"{gcloud_repair(self._names, queue)}"
            ) from error
        self._deadlines[name] = queue.ack_deadline

    def _blind(self, subscription: str) -> list[str]:
        """A warning, at the first one: it is the same with all of them."""
        if "look" in self._warned:
            return []
        self._warned.add("look")
        why = "nor can others: they are taken for right, and a topic that is deleted would not be noticed"
        return [f"{subscription} can't be looked at, {why}: {self.missing(permissions.LOOK)}"]

    def _warn_blind(self, queue: QueueSpec) -> None:
        self._warn(
            f"topics and subscriptions can't be made here, nor looked at: a deployer must have made those of "
            f"{queue.name}, and of other queues, since a topic without a subscription loses what is sent to it: "
            f"{gcloud_create(self._names, queue)}",
            once="blind",
        )

    def _warn(self, text: str, once: str = "") -> None:
        if (once or text) not in self._warned:
            self._warned.add(once or text)
            log.warning("%s", text)
