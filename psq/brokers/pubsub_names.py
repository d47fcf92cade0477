"""What things are called on Pub/Sub, and the URL that leads there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from psq.brokers.base import QueueSpec
from psq.errors import ConfigError

__all__ = ["AUTO", "CHECK", "EMULATOR_VARIABLE", "HOST", "NEVER", "Names", "Place", "place_from", "place_from_url"]

#: The service itself.
HOST = "pubsub.googleapis.com"
#: Set by `gcloud beta emulators pubsub env-init`; Google's own clients read it, too.
EMULATOR_VARIABLE = "PUBSUB_EMULATOR_HOST"
#: What a process does about topics and subscriptions: make what is missing; look, and make nothing; neither.
AUTO, CHECK, NEVER = "auto", "check", "never"
DECLARE = (AUTO, CHECK, NEVER)
#: Longest name of a topic or subscription (Pub/Sub's documentation).
MAX_NAME = 255

_ID = re.compile(r"[A-Za-z][A-Za-z0-9\-_.~+%]*\Z")
_QUEUE = re.compile(r"[A-Za-z0-9\-_.~+%]+\Z")
_PROJECT = re.compile(r"[a-z0-9][a-z0-9.:\-]*\Z")
_RESERVED = ("-dead", "-shared")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a project's Pub/Sub is reached.

    Attributes:
        project: The project's id.
        address: ``host:port``.
        secure: TLS and credentials; False for an emulator.
        prefix: Put before all names that we make.
        declare: ``auto``, ``check`` or ``never``: whether we make what is missing.
    """

    project: str
    address: str = f"{HOST}:443"
    secure: bool = True
    prefix: str = ""
    declare: str = AUTO

    @property
    def url(self) -> str:
        """What `place_from_url` takes."""
        options = []
        if not self.secure:
            options.append(("endpoint", f"http://{self.address}"))
        elif self.address != f"{HOST}:443":
            options.append(("endpoint", self.address.removesuffix(":443")))
        if self.prefix:
            options.append(("prefix", self.prefix))
        if self.declare != AUTO:
            options.append(("declare", self.declare))
        query = urlencode(options, safe=":/", quote_via=quote)
        return f"pubsub://{self.project}" + (f"?{query}" if query else "")


def place_from(
    project: str,
    *,
    endpoint: str | None = None,
    prefix: str = "",
    declare: str = AUTO,
    environ: Mapping[str, str] = os.environ,
) -> Place:
    """Check what a user gave.

    Args:
        project: The project's id.
        endpoint: ``host``, ``host:port`` or ``https://host`` (TLS), or ``http://host:port`` for an
            emulator; None: `PUBSUB_EMULATOR_HOST` where it is set, else the service.
        prefix: Put before all names that we make.
        declare: ``auto``, ``check`` or ``never``.
        environ: The environment.

    Raises:
        ConfigError: One of them can't be right.
    """
    if declare not in DECLARE:
        raise ConfigError(f"declare is one of {', '.join(DECLARE)}, not {declare!r}")
    if not isinstance(project, str) or not _PROJECT.match(project):
        raise ConfigError(f"{project!r} is no project id: write pubsub://my-project")
    if prefix and (not _ID.match(prefix) or prefix.lower().startswith("goog") or len(prefix) > 100):
        raise ConfigError(
            f"{prefix!r} is no prefix for Pub/Sub: it starts with a letter (but not with goog), then letters, digits "
            "and any of -_.~+%, 100 characters at most"
        )
    if endpoint is None:
        emulator = environ.get(EMULATOR_VARIABLE, "").strip()
        endpoint = f"http://{emulator.removeprefix('http://')}" if emulator else HOST
    secure = True
    address = endpoint.strip().rstrip("/")
    if address.startswith("http://"):
        secure, address = False, address.removeprefix("http://")
    address = address.removeprefix("https://")
    if not re.match(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.\-]+)(:[0-9]{1,5})?\Z", address):
        raise ConfigError(
            f"{endpoint!r} is no endpoint: write a host such as europe-west1-pubsub.googleapis.com, "
            "or http://host:port for an emulator"
        )
    if not re.search(r":[0-9]+\Z", address):
        address += ":443" if secure else ":8085"
    return Place(project, address, secure, prefix, declare)


def place_from_url(url: str, environ: Mapping[str, str] = os.environ) -> Place:
    """Read ``pubsub://PROJECT[?endpoint=…&prefix=…&declare=…]``.

    Raises:
        ConfigError: It is not of this form.
    """
    parts = urlsplit(url)
    if parts.scheme != "pubsub" or not parts.netloc or parts.path not in ("", "/") or parts.fragment:
        raise ConfigError(f"{url!r} is not of the form pubsub://PROJECT[?endpoint=…&prefix=…&declare=…]")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(options) - {"endpoint", "prefix", "declare"})
    if unknown:
        raise ConfigError(f"{url!r}: unknown option {unknown[0]!r}; there are endpoint, prefix and declare")
    return place_from(
        parts.netloc,
        endpoint=options.get("endpoint") or None,
        prefix=options.get("prefix", ""),
        declare=options.get("declare", AUTO),
        environ=environ,
    )


class Names:
    """Full names of what belongs to a queue.

    Args:
        project: The project's id.
        prefix: Put before all names.
    """

    def __init__(self, project: str, prefix: str = "") -> None:
        self.project, self.prefix = project, prefix
        self._topics = f"projects/{project}/topics/{prefix}psq-"
        self._subscriptions = f"projects/{project}/subscriptions/{prefix}psq-"

    def check(self, name: str) -> None:
        """Raise ConfigError, with what is valid, where a queue can't be called so."""
        if not isinstance(name, str) or not _QUEUE.match(name):
            raise ConfigError(
                f"{name!r} is no name for a queue on Pub/Sub: write letters, digits and any of -_.~+%, at least one"
            )
        for ending in _RESERVED:
            if name.endswith(ending):
                raise ConfigError(
                    f"the queue name {name!r} ends in {ending}: psq uses such names for its own subscriptions"
                )
        longest = MAX_NAME - len(self.prefix) - len("psq-") - len("-shared")
        if len(name) > longest:
            raise ConfigError(
                f"the queue name {name[:40]!r}… has {len(name)} characters; with the prefix {self.prefix!r} "
                f"Pub/Sub takes {longest}"
            )

    def topic(self, queue: str) -> str:
        """Full name of a queue's topic."""
        return self._topics + queue

    def subscription(self, queue: QueueSpec) -> str:
        """Full name of a queue's subscription; of a broadcast queue: of this member's.

        Raises:
            ConfigError: A broadcast queue without a member, or a member whose name can't be used.
        """
        if not queue.broadcast:
            return f"{self._subscriptions}{queue.name}-shared"
        if not queue.member:
            raise ConfigError(f"the broadcast queue {queue.name!r} needs a member to receive: it has no shared copy")
        name = f"{self.prefix}psq-{queue.name}-{queue.member}"
        if not _QUEUE.match(queue.member) or queue.member in ("shared", "dead") or len(name) > MAX_NAME:
            raise ConfigError(
                f"{queue.member!r} can't name a copy of the broadcast queue {queue.name!r}: letters, digits and any "
                f"of -_.~+%, not shared or dead, and {MAX_NAME} characters in all for {name!r}"
            )
        return f"{self._subscriptions}{queue.name}-{queue.member}"

    def dead_topic(self, queue: str) -> str:
        """Full name of the topic that keeps a queue's dead letters."""
        return f"{self._topics}{queue}-dead"

    def dead_subscription(self, queue: str) -> str:
        """Full name of the subscription that keeps a queue's dead letters."""
        return f"{self._subscriptions}{queue}-dead"

    def queue_of_dead(self, subscription: str) -> str | None:
        """The queue whose dead letters a subscription keeps; None where it keeps none of ours."""
        if subscription.startswith(self._subscriptions) and subscription.endswith("-dead"):
            return subscription[len(self._subscriptions) : -len("-dead")] or None
        return None

    def source(self, queue: QueueSpec) -> str:
        """What the keeper knows a queue by: its subscription, and where strikes are published.

        A shared queue's is the subscription's name alone: its topic follows from it. A member's is followed by
        its topic and the member, since a strike is for that member only.
        """
        subscription = self.subscription(queue)
        return f"{subscription} {self.topic(queue.name)} {queue.member}" if queue.broadcast else subscription
