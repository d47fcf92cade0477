"""The two ways in which a Queue is made: today's, and psq 0.8's with Google's own client objects."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from psq.brokers.base import Broker
from psq.client import DEFAULT, Client
from psq.errors import ConfigError

__all__ = ["bind", "checked_name", "client_from"]

_TODAY = ("client", "name", "storage", "extra_context", "asynchronous")
_THEN = ("publisher_client", "subscriber_client", "project", "name", "storage", "extra_context", "asynchronous")
_is_name = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~+%-]{0,199}\Z").match
_MARKS = frozenset(_THEN[:3])


def bind(args: Sequence[Any], kwargs: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Values by today's names; what was not given is left out.

    Args:
        args: Positional arguments of the constructor.
        kwargs: Keyword arguments.
        kind: The class's name, for errors.

    Raises:
        TypeError: They fit neither signature.
        ConfigError: They do, but no client can be made of them.
    """
    then = bool(_MARKS & kwargs.keys()) or (len(args) > 1 and not isinstance(args[1], str))
    names = _THEN if then else _TODAY
    if len(args) > len(names):
        raise TypeError(f"{kind} takes at most {len(names)} positional arguments: {', '.join(names)}")
    bound = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in names:
            raise TypeError(f"{kind} has no argument {name!r}; there are {', '.join(names)}")
        if name in bound:
            raise TypeError(f"{kind} got two values for the argument {name!r}")
        bound[name] = value
    if then:
        publisher, subscriber = bound.pop("publisher_client", None), bound.pop("subscriber_client", None)
        project = bound.pop("project", None)
        if not isinstance(project, str) or not project:
            raise ConfigError(
                f"write psq.{kind}(client, name) with client = psq.Client(project=…), or "
                f"psq.{kind}(publisher_client, subscriber_client, 'project-id', name=…)"
            )
        bound["client"] = _of_google(publisher, subscriber, project)
        if bound.get("storage", DEFAULT) is None:
            del bound["storage"]  # psq 0.8's default
    return bound


def client_from(given: Any, kind: str) -> Client | None:
    """A Queue's client; None for the default one.

    Raises:
        ConfigError: Something else; the text says what to write.
    """
    if given is None or isinstance(given, Client):
        return given
    if isinstance(given, Broker):
        return Client(broker=given)
    if isinstance(given, str):
        if "://" in given:
            raise ConfigError(f"a {kind} takes a client: write psq.{kind}(psq.connect({given!r}))")
        raise ConfigError(f"a {kind}'s first argument is its client: write psq.{kind}(name={given!r})")
    raise ConfigError(
        f"a {kind} takes a psq client, not a {type(given).__name__}: write psq.Client(project=…), psq.connect(url), "
        f"or, as with psq 0.8, psq.{kind}(publisher_client, subscriber_client, 'project-id')"
    )


def _of_google(publisher: Any, subscriber: Any, project: str) -> Client:
    """A client with the project, credentials and endpoint of Google's client objects; their channels are not used."""
    if publisher is None and subscriber is None:
        return Client(project=project)
    from psq.google.clients import settings_of

    settings = settings_of(publisher if publisher is not None else subscriber)
    return Client(project=project, endpoint=settings["endpoint"], credentials=settings["credentials"])


def checked_name(name: Any) -> str:
    """A queue's name, if it is one; each broker may say more about it at the first enqueue."""
    if not isinstance(name, str) or not _is_name(name):
        raise ConfigError(
            f"{name!r} is no queue's name: write 1 to 200 letters, digits and - _ . ~ + %, the first a letter or digit"
        )
    for ending in ("-dead", "-shared"):
        if name.endswith(ending):
            raise ConfigError(f"{name!r} is no queue's name: names that end in {ending!r} are psq's own")
    return name
