"""What can be taken from Google's own client objects: project, credentials, endpoint. Never their channels."""

from __future__ import annotations

from typing import Any

from psq.errors import ConfigError

__all__ = ["settings_of"]


def settings_of(client: Any) -> dict[str, Any]:
    """Where a client of google-cloud-pubsub 2.x leads, and as whom.

    Their channels receive at most 4 MB and are made for blocking calls, so they are not used.

    Args:
        client: A `PublisherClient` or `SubscriberClient`.

    Returns:
        ``endpoint`` (for `PubSubBroker`) and ``credentials`` (None for an emulator or the default ones).

    Raises:
        ConfigError: It is no such client.
    """
    transport = getattr(client, "transport", None)
    if transport is None:
        raise ConfigError(
            f"{type(client).__module__}.{type(client).__qualname__} is no client of google-cloud-pubsub 2: "
            "give a PublisherClient or SubscriberClient, or make the queue with psq.connect(url)"
        )
    emulator = _emulator_of(client)
    if emulator:
        return {"endpoint": f"http://{emulator.removeprefix('http://')}", "credentials": None}
    credentials = getattr(transport, "_credentials", None)
    if type(credentials).__name__ == "AnonymousCredentials":
        credentials = None
    host = str(getattr(transport, "host", "") or getattr(client, "api_endpoint", "") or "")
    return {"endpoint": host or None, "credentials": credentials}


def _emulator_of(client: Any) -> str:
    """The emulator that a client talks to, or ""."""
    import os

    options = getattr(client, "_client_options", None)
    endpoint = str(getattr(options, "api_endpoint", "") or "")
    emulator = os.environ.get("PUBSUB_EMULATOR_HOST", "")
    if emulator:
        return emulator
    return endpoint if endpoint.startswith("http://") else ""
