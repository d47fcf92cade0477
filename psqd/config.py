"""The config of a daemon: frozen, complete, checked. `psqd.configfile` reads it from a file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BeforeValidator, model_validator

from psqd.config_queue import YEAR, QueueConfig, RetryConfig, Section, queue_name_problem
from psqd.config_rules import Rule, choice, flag, key, number, problems_error, refuse, text, texts, whole
from psqd.config_schedule import ScheduleConfig
from psqd.problems import did_you_mean

if TYPE_CHECKING:
    from psq.queue import Queue

__all__ = ["Config", "HttpConfig", "LoggingConfig", "QueueConfig", "RetryConfig", "ScheduleConfig"]

BROKERS = ("pubsub", "sqlite")
STORAGES = ("datastore", "sqlite", "redis", "memcached", "none")
#: Storages whose driver is still to come.
STORAGES_LATER = ("redis", "memcached")

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(\.\*)?")


def _check_url(schemes: Sequence[str], value: str) -> str:
    scheme, found, _ = value.partition("://")
    if not found or scheme not in schemes:
        raise ValueError(did_you_mean(scheme, schemes) if found else "")
    try:
        parts = urlsplit(value)
        if parts.port is not None and not 0 < parts.port < 65536:
            raise ValueError
    except ValueError:
        raise ValueError("; that is no URL") from None
    if any(c.isspace() or not c.isprintable() for c in value):
        raise ValueError("; a URL has no spaces")
    if scheme == "sqlite":
        if parts.netloc:
            raise ValueError(f"; the path must be absolute: sqlite:///{parts.netloc}{parts.path} or the like")
    elif scheme in ("pubsub", "datastore") and not parts.hostname:
        raise ValueError(f"; name the project: {scheme}://my-project")
    if parts.fragment:
        raise ValueError("; what follows the # is not used")
    return value


def _check_broker(value: str) -> str:
    return _check_url(BROKERS, value)


def _declare_of(broker: str) -> str:
    """What the broker's URL says about `declare`, "" for nothing."""
    return dict(parse_qsl(urlsplit(broker).query)).get("declare", "") if broker.startswith("pubsub:") else ""


def _check_storage(value: str) -> str:
    if value == "none":
        return value
    scheme = _check_url([name for name in STORAGES if name != "none"], value).partition(":")[0]
    if scheme in STORAGES_LATER:
        refuse(f"as {scheme}:// is not available yet: use datastore://, sqlite:// or none")
    return value


def _check_module(value: str) -> str:
    if not _MODULE.fullmatch(value):
        raise ValueError
    return value


def _check_bind(value: str) -> str:
    split_bind(value)
    return value


def split_bind(value: str) -> tuple[str, int]:
    """Host and port of ``host:port``; ``[::1]:9191`` for IPv6.

    Raises:
        ValueError: It is not of this form.
    """
    host, colon, port = value.rpartition(":")
    if host.startswith("[") and host.endswith("]") and ":" in host:
        host = host[1:-1]
    elif not host:
        raise ValueError(f"; for all addresses write 0.0.0.0:{port if colon else value}")
    elif ":" in host:
        raise ValueError("; put an IPv6 address in brackets: [::1]:9191")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535 or not re.fullmatch(r"[\w.:%-]+", host):
        raise ValueError
    return host, int(port)


def _secret_keys(value: Any) -> list[str]:
    if isinstance(value, str) and value:
        return [str(value)]
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item for item in value):
        raise ValueError
    return [str(item) for item in value]


class HttpConfig(Section):
    """Health, metrics and status over HTTP; without this section nothing of it is even imported."""

    bind: Annotated[str, text(_check_bind, valid="`host:port`, such as 127.0.0.1:9191")] = key(
        ..., "Where to listen, `host:port`; port 0 takes a free one and logs it."
    )
    token: Annotated[str | None, text(nullable=True, secret=True)] = key(
        None, "What every page but `/healthz` asks for as `Authorization: Bearer`; empty: nothing."
    )

    @property
    def host(self) -> str:
        """The address to listen on."""
        return split_bind(self.bind)[0]

    @property
    def port(self) -> int:
        """The port to listen on; 0: a free one."""
        return split_bind(self.bind)[1]


class LoggingConfig(Section):
    """What is logged, and where to."""

    format: Annotated[Literal["text", "json"], choice("text", "json")] = key(
        "text", "`text` for people, `json` for machines."
    )
    level: Annotated[Literal["debug", "info", "warning", "error"], choice("debug", "info", "warning", "error")] = key(
        "info", "The least important lines that are written."
    )
    tasks: Annotated[Literal["all", "failures"], choice("all", "failures")] = key(
        "all", "Lines for every task, or only for those that failed."
    )
    file: Annotated[str | None, text(nullable=True)] = key(
        None, "A file to write to, opened anew on SIGUSR1; empty: stderr."
    )


def _section(value: Any) -> Any:
    return {} if value is None else value


_module_names = texts(
    _check_module,
    valid="a list of modules",
    example="myapp.tasks",
    each="a module such as `myapp.tasks`, or `myapp.*` for a package and what is below it",
)


class Config(Section):
    """All settings of a daemon; what `queues` share (`defaults:`) is already in each of them."""

    broker: Annotated[str, text(_check_broker, valid="pubsub://PROJECT or sqlite:///PATH", secret=True)] = key(
        "sqlite://", "Where tasks come from. Default: `$PSQ_BROKER`, else the embedded one.", reload="restart"
    )
    storage: Annotated[str, text(_check_storage, valid="datastore://PROJECT, sqlite:///PATH or none", secret=True)] = (
        key(
            "none",
            "Where results go. Default: `$PSQ_STORAGE`, else the embedded broker's own file, else none.",
            reload="restart",
        )
    )
    imports: Annotated[list[str], _module_names] = key(
        [], "The modules whose functions may run; `myapp.*` is a package and what is below it."
    )
    path: Annotated[list[str], texts(None, valid="a list of folders", example=".", each="a folder")] = key(
        ["."], "Folders put first on sys.path, relative to the working directory.", reload="restart"
    )
    shutdown_timeout: Annotated[float, number(0, YEAR)] = key(
        25.0, "How long running tasks may take to end when the daemon stops.", unit="seconds"
    )
    hub_stall_limit: Annotated[float, number(5, YEAR)] = key(
        300.0, "A worker whose hub stands still for longer is killed, and its tasks given back.", unit="seconds"
    )
    max_prefetch_bytes: Annotated[int, whole(1_000_000, 2**40)] = key(
        64 * 2**20, "Most bytes of messages that wait in a daemon for a free slot.", unit="bytes"
    )
    max_strikes: Annotated[int, whole(0, 1000)] = key(
        3,
        "A task that killed so many workers, the last one alone in it, becomes a dead letter; 0: never.",
        unit="strikes",
    )
    unknown_function_grace: Annotated[float, number(0, YEAR)] = key(
        600.0,
        "How long a task whose function this daemon does not know yet is held back, for a deploy to finish.",
        unit="seconds",
    )
    dead_ttl: Annotated[float | None, number(1, 100 * YEAR, nullable=True, later=True)] = key(
        None, "How long dead letters are kept; empty: until they are deleted.", unit="seconds", later=True
    )
    declare: Annotated[Literal["auto", "check", "never"], choice("auto", "check", "never")] = key(
        "auto",
        "(Pub/Sub) `auto`: topics and subscriptions are made where they are missing. For where only a deployer may "
        "make them, with `psq declare -c FILE`: `check` looks at them at the start, `never` asks for nothing.",
        reload="restart",
    )
    task_only: Annotated[bool, flag()] = key(False, "Only functions with `@psq.task` may run.")
    secret_key: Annotated[
        list[str],
        BeforeValidator(
            Rule(
                "a text or a list of texts, newest first",
                _secret_keys,
                nullable=True,
                nothing=list,
                secret=True,
                later=bool,
            )
        ),
    ] = key([], "Keys that sign pickled payloads, newest first.", reload="restart", later=True)
    queues: Annotated[dict[str, QueueConfig], BeforeValidator(_section)] = key({}, "The queues, by name.")
    schedule: Annotated[dict[str, ScheduleConfig], BeforeValidator(_section)] = key(
        {}, "Tasks to enqueue at set times, by name.", later=True
    )
    http: HttpConfig | None = key(None, "Health, metrics and status over HTTP.")
    logging: Annotated[LoggingConfig, BeforeValidator(_section)] = key(LoggingConfig(), "What is logged.")

    @model_validator(mode="after")
    def _check(self) -> Config:
        problems: list[tuple[tuple[str, ...], str]]
        problems = [(("queues", name), said) for name in self.queues if (said := queue_name_problem(name))]
        for name, entry in self.schedule.items():
            if entry.queue not in self.queues:
                said = f"names no queue of this file: '{entry.queue}'" + did_you_mean(entry.queue, self.queues)
                problems.append((("schedule", name, "queue"), said))
            problems.append((("schedule", name), "is not available yet: leave it out"))
        said_by_url = _declare_of(self.broker)
        if said_by_url not in ("", self.declare) and self.declare != "auto":
            problems.append((("declare",), f"is {self.declare}, and the broker's URL says declare={said_by_url}"))
        if self.declares != "auto":
            said = f"is for `declare: auto`: with {self.declares} a deployer makes the copies, and they stay"
            deleted = (name for name, queue in self.queues.items() if queue.broadcast and queue.on_drain == "delete")
            problems += [(("queues", name, "on_drain"), said) for name in deleted]
        if problems:
            raise problems_error(problems)
        return self

    @property
    def declares(self) -> str:
        """What is done about topics and subscriptions: `declare`, or what the broker's URL says instead of auto."""
        return self.declare if self.declare != "auto" else _declare_of(self.broker) or "auto"

    @cached_property
    def hash(self) -> str:
        """Twelve hex digits that differ where the settings do."""
        document = json.dumps(self.model_dump(), sort_keys=True, default=str)
        return hashlib.sha256(document.encode("utf-8", "surrogatepass")).hexdigest()[:12]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Config:
        """A copy with other values, unchecked; its `hash` is its own."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("hash", None)
        return copy

    @classmethod
    def for_queue(
        cls,
        queue: Queue,
        *,
        imports: Sequence[str] = (),
        paths: Sequence[str] = (),
        concurrency: int | None = None,
    ) -> Config:
        """The config of a daemon that runs one `psq.Queue` object, as psqworker does.

        `broker` and `storage` are the URLs for people to read: the queue object has them already.

        Args:
            queue: The queue.
            imports: Modules whose functions may run, beside those under `paths`.
            paths: Folders put first on sys.path.
            concurrency: Most tasks at once; None: the default.

        Raises:
            ConfigError: A value is not valid.
        """
        from psqd.configfile import validated

        settings: dict[str, Any] = {"type": "broadcast" if queue.broadcast else "shared"}
        if concurrency is not None:
            settings["concurrency"] = concurrency
        if queue.storage is not None:
            settings["store_on_status"] = list(queue.storage.store_on_status)
        raw = {
            "imports": list(dict.fromkeys(imports)),
            "path": list(dict.fromkeys(paths)),
            "queues": {queue.name: settings},
        }
        storage = "none" if queue.storage is None else queue.storage.url
        config: Config = validated(raw, "")
        return config.model_copy(update={"broker": queue.client.broker.url, "storage": storage})


def default_storage(broker: str) -> str:
    """Where results go when nobody says: the embedded broker's own file, else nowhere."""
    return "sqlite://" if broker.startswith("sqlite:") else "none"


def masked_url(url: str) -> str:
    """A URL without its passwords."""
    scheme, found, rest = url.partition("://")
    if not found:
        return url
    authority, slash, tail = rest.partition("/")
    user, at, host = authority.rpartition("@")
    if at and ":" in user:
        authority = f"{user.partition(':')[0]}:***@{host}"
    url = f"{scheme}://{authority}{slash}{tail}"
    path, question, query = url.partition("?")
    if question:
        pairs = parse_qsl(query, keep_blank_values=True)
        for name, value in pairs:
            if value and re.search(r"passw|secret|token|key", name, re.IGNORECASE):
                query = re.sub(rf"(^|&)({re.escape(name)}=)[^&]*", r"\1\2***", query)
    return path + question + query
