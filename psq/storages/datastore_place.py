"""Which database is meant, and how it is reached: arguments, Google's own client, URL, environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from psq.errors import ConfigError, StorageRefused
from psq.google.channel import Target

__all__ = ["HOST", "Place"]

#: The service.
HOST = "datastore.googleapis.com"
#: The variables that name a project, in the order in which they count.
PROJECT_VARIABLES = ("DATASTORE_PROJECT_ID", "DATASTORE_DATASET", "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT")

_PROJECT = re.compile(r"(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]{1,61}[a-z0-9]", re.IGNORECASE)
_DATABASE = re.compile(r"[a-z][a-z0-9-]{0,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class Place:
    """A database and the way to it.

    Attributes:
        project: Project id; "" until it is looked up.
        database: Database id, "" for the default one.
        namespace: Namespace, "" for the default one.
        endpoint: ``host[:port]``, or ``http://host:port`` for one without TLS; "": the emulator
            of ``DATASTORE_EMULATOR_HOST``, else the service.
        credentials: google-auth credentials, or None for application default credentials.
    """

    project: str = ""
    database: str = ""
    namespace: str = ""
    endpoint: str = ""
    credentials: Any = None

    @classmethod
    def of(
        cls,
        client: Any,
        *,
        project: str | None,
        database: str | None,
        namespace: str | None,
        endpoint: str | None,
        credentials: Any,
    ) -> Place:
        """The place that arguments mean; what is None comes from the client, where there is one.

        Raises:
            ConfigError: The client is none of Google's, or a name is not valid.
        """
        if isinstance(client, str):
            raise ConfigError(
                f"DatastoreStorage({client!r}): the first argument is a google.cloud.datastore.Client; "
                f"write DatastoreStorage(project={client!r})"
            )
        found: dict[str, Any] = {}
        if client is not None:
            if not hasattr(client, "project") or not hasattr(client, "namespace"):
                raise ConfigError(
                    f"DatastoreStorage takes a google.cloud.datastore.Client, not a {type(client).__name__}"
                )
            found = _of_client(client)
        place = cls(
            project=found.get("project", "") if project is None else project,
            database=_plain_database(found.get("database", "") if database is None else database),
            namespace=found.get("namespace", "") if namespace is None else namespace,
            endpoint=found.get("endpoint", "") if endpoint is None else endpoint,
            credentials=found.get("credentials") if credentials is None else credentials,
        )
        place._check()
        return place

    @classmethod
    def of_url(cls, url: str) -> Place:
        """The place of ``datastore://PROJECT[/DATABASE]?namespace=…&endpoint=…``.

        Raises:
            ConfigError: The URL is not of this form; the text says what is wrong.
        """
        form = "datastore://PROJECT[/DATABASE][?namespace=…&endpoint=…]"
        parts = urlsplit(url)
        if parts.scheme != "datastore":
            raise ConfigError(f"{url!r} is no Datastore URL; write {form}")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        unknown = sorted(set(options) - {"namespace", "endpoint"})
        if unknown or parts.fragment:
            raise ConfigError(f"{url!r}: unknown option {', '.join(unknown) or parts.fragment!r}; write {form}")
        if "@" in parts.netloc or "/" in parts.path.strip("/"):
            raise ConfigError(f"{url!r}: write {form}")
        place = cls(
            project=unquote(parts.netloc),
            database=_plain_database(unquote(parts.path.strip("/"))),
            namespace=options.get("namespace", ""),
            endpoint=options.get("endpoint", ""),
        )
        place._check()
        return place

    def _check(self) -> None:
        if self.project and not _PROJECT.fullmatch(self.project):
            raise ConfigError(f"{self.project!r} is no project id: 6 to 30 lower-case letters, digits and hyphens")
        if self.database and not _DATABASE.fullmatch(self.database):
            raise ConfigError(f"{self.database!r} is no database id: 4 to 63 lower-case letters, digits and hyphens")
        if self.namespace and not re.fullmatch(r"[0-9A-Za-z._-]{1,100}", self.namespace):
            raise ConfigError(f"{self.namespace!r} is no namespace: up to 100 of 0-9 A-Z a-z . _ -")

    def with_project(self, environ: Mapping[str, str] = os.environ) -> Place:
        """The same with a project: from the environment, else of the application default credentials.

        Raises:
            ConfigError: Nothing names a project.
        """
        if self.project:
            return self
        project = next((environ[name] for name in PROJECT_VARIABLES if environ.get(name)), "")
        if not project and self.credentials is None and not self._emulator(environ):
            project = _default_project()
        if not project:
            raise ConfigError(
                "which project? DatastoreStorage(project=…), a URL datastore://PROJECT, or GOOGLE_CLOUD_PROJECT"
            )
        place = Place(project, self.database, self.namespace, self.endpoint, self.credentials)
        place._check()
        return place

    def _emulator(self, environ: Mapping[str, str]) -> str:
        if self.endpoint:
            return self.endpoint.removeprefix("http://") if self.endpoint.startswith("http://") else ""
        return environ.get("DATASTORE_EMULATOR_HOST", "").removeprefix("http://")

    def target(self, environ: Mapping[str, str] = os.environ) -> Target:
        """Where the channel leads."""
        emulator = self._emulator(environ).rstrip("/")
        if emulator:
            return Target(emulator, secure=False)
        address = self.endpoint.removeprefix("https://").rstrip("/") or HOST
        if ":" not in address:
            address += ":443"
        return Target(address, credentials=self.credentials, audience=HOST)

    def url(self) -> str:
        """What `of_url` makes the same place of; without credentials."""
        return self._text({"namespace": self.namespace, "endpoint": self.endpoint})

    def identity(self) -> str:
        """Names the database, equal however it is reached."""
        return self._text({"namespace": self.namespace})

    def _text(self, options: dict[str, str]) -> str:
        text = f"datastore://{quote(self.project, safe=':.')}"
        if self.database:
            text += "/" + quote(self.database)
        query = urlencode({name: value for name, value in options.items() if value}, safe=":/")
        return f"{text}?{query}" if query else text


def _plain_database(database: str | None) -> str:
    return "" if database in (None, "(default)") else str(database)


def _of_client(client: Any) -> dict[str, Any]:
    """What Google's own client was made with; its channel is not used."""
    base = str(getattr(client, "base_url", None) or getattr(client, "_base_url", None) or "")
    secure = not base.startswith("http://")
    host = base.removeprefix("https://").rstrip("/")
    return {
        "project": client.project or "",
        "database": getattr(client, "database", None) or "",
        "namespace": client.namespace or "",
        "endpoint": "" if host == HOST else host,
        "credentials": getattr(client, "_credentials", None) if secure else None,
    }


def _default_project() -> str:
    try:
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError
    except ImportError:
        return ""
    try:
        _, project = google.auth.default()
    except DefaultCredentialsError as error:
        refused = StorageRefused(f"no credentials for Datastore: {error}")
        refused.everything = True
        raise refused from error
    return project or ""
