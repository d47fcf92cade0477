"""The config's models: frozen, complete, the same from code, from a file and from what --print-config says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import psq
from psq.brokers.base import QueueSpec
from psq.errors import ConfigError
from psqd.config import Config, HttpConfig, LoggingConfig, ScheduleConfig, masked_url
from psqd.config_print import as_yaml
from psqd.config_queue import STATES, QueueConfig, QueueDefaults, RetryConfig, queue_name_problem
from psqd.config_schedule import CRON_NAMES, cron_fields
from psqd.configfile import loads
from scripts.config_docs import PAGE, filled

ROOT = Path(__file__).parents[2]
SHIPPED = (ROOT / "conf" / "psqd.yaml").read_text("utf-8")


def config(text: str = "") -> Config:
    return loads(f"imports: [m]\nqueues: {{default: }}\n{text}\n", environ={})


# the shipped file and the page


def test_the_shipped_file_names_every_key_at_its_default() -> None:
    document = yaml.safe_load(SHIPPED.replace("schedule: {}\n  # ", "schedule:\n  "))
    assert set(document) == {*Config.model_fields, "defaults"}
    assert set(document["defaults"]) == set(QueueConfig.model_fields)
    assert set(document["defaults"]["retry"]) == set(RetryConfig.model_fields) - {"on"} | {True}, "`on:` by YAML 1.1"
    assert set(document["http"]) == set(HttpConfig.model_fields)
    assert set(document["logging"]) == set(LoggingConfig.model_fields)
    assert set(document["schedule"]["nightly"]) == set(ScheduleConfig.model_fields) - {"args", "kwargs"}

    shipped = loads(SHIPPED, environ={})
    assert shipped.queues["default"] == QueueConfig()
    assert shipped.queues["fleet"] == QueueConfig(type="broadcast")
    plain = config().model_dump(exclude={"imports", "queues", "http"})
    assert shipped.model_dump(exclude={"imports", "queues", "http"}) == plain
    assert shipped.http == HttpConfig(bind="127.0.0.1:9191")


def test_the_page_says_every_key_as_the_models_do() -> None:
    text = PAGE.read_text("utf-8")
    assert filled(text) == text, "run: python scripts/config_docs.py"


def test_the_examples_of_the_page_are_valid() -> None:
    blocks = [part.split("```")[0] for part in PAGE.read_text("utf-8").split("```yaml\n")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        assert loads(block, environ={}).queues


# values


def test_what_the_worker_asks_for_is_there_with_its_default() -> None:
    got = config()
    queue = got.queues["default"]
    assert (got.broker, got.storage, got.path, got.shutdown_timeout) == ("sqlite://", "sqlite://", ["."], 25.0)
    assert (got.hub_stall_limit, got.max_prefetch_bytes, got.max_strikes) == (300.0, 64 * 2**20, 3)
    assert (got.unknown_function_grace, got.task_only, got.http, got.declare) == (600.0, False, None, "auto")
    assert (queue.concurrency, queue.ack, queue.ack_deadline, queue.lease) == (100, "late", 10.0, 30.0)
    assert (queue.retries, queue.result_ttl, queue.store_on_status) == (
        0,
        86_400.0,
        ["finished", "failed", "cancelled"],
    )


def test_a_config_is_frozen() -> None:
    got = config()
    with pytest.raises(ValidationError):
        got.broker = "sqlite:///x"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        got.queues["default"].concurrency = 1  # type: ignore[misc]


def test_a_queues_policy_is_made_of_retries_and_retry() -> None:
    got = config(
        "defaults: {retries: 3, retry: {first: 5, factor: 3, max: 60, jitter: 0, on: [OSError], not_on: [m:X]}}"
    )
    assert got.queues["default"].policy == psq.RetryPolicy(
        retries=3, first=5.0, factor=3.0, max=60.0, jitter=0.0, on=("OSError",), not_on=("m:X",)
    )


def test_a_queues_spec_is_what_the_broker_must_know() -> None:
    assert QueueConfig(ack_deadline=20).spec("a") == QueueSpec("a", ack_deadline=20.0)
    assert QueueConfig(type="broadcast", on_drain="delete").spec("a", "host-0") == QueueSpec(
        "a", broadcast=True, member="host-0", delete_on_close=True
    )


@pytest.mark.parametrize(
    ("keys", "limit"),
    [
        ({}, 12 * 3600),
        ({"time_limit": 60}, 12 * 3600),
        ({"time_limit": 86_400}, 86_460),
        ({"max_lease": 600, "time_limit": 60}, 600),
    ],
)
def test_a_lease_is_kept_for_longer_than_a_task_may_run(keys: dict[str, Any], limit: float) -> None:
    assert QueueConfig(**keys).lease_limit == limit


@pytest.mark.parametrize(
    ("bind", "host", "port"),
    [
        ("127.0.0.1:9191", "127.0.0.1", 9191),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::1]:80", "::1", 80),
        ("my-host.example:65535", "my-host.example", 65535),
    ],
)
def test_an_address_is_a_host_and_a_port(bind: str, host: str, port: int) -> None:
    http = HttpConfig(bind=bind)
    assert (http.host, http.port) == (host, port)


@pytest.mark.parametrize("bind", ["", "host", "host:", ":80", "host:-1", "host:65536", "::1:80", "[host]:80", "a b:1"])
def test_what_is_no_address_is_refused(bind: str) -> None:
    with pytest.raises(ValidationError, match="host:port"):
        HttpConfig(bind=bind)


@pytest.mark.parametrize(
    "broker",
    [
        "sqlite://",
        "sqlite:///var/lib/psq.db",
        "sqlite:////var/lib/psq.db",
        "pubsub://my-project",
        "pubsub://my-project?endpoint=europe-west1-pubsub.googleapis.com&prefix=shop-staging-",
    ],
)
def test_brokers_that_there_are(broker: str) -> None:
    assert Config(broker=broker).broker == broker


@pytest.mark.parametrize(
    "broker",
    [
        "",
        "pubsub",
        "pubsub:/p",
        "sqlite://relative.db",
        "pubsub://",
        "pubsub://p:99999",
        "http://x",
        "sqlite:///a b",
        5,
    ],
)
def test_what_is_no_broker_is_refused(broker: Any) -> None:
    with pytest.raises(ValidationError, match=r"must be pubsub://PROJECT or sqlite:///PATH"):
        Config(broker=broker)


@pytest.mark.parametrize("name", sorted(CRON_NAMES))
def test_the_named_cron_lines_are_cron_lines(name: str) -> None:
    assert cron_fields(name) == cron_fields(cron_fields(name))


@pytest.mark.parametrize("line", ["", "* * * *", "0 0 31 2 *", "60 * * * *", "@dayly", "* * * * * *", "a b c d e"])
def test_what_is_no_cron_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        cron_fields(line)


def test_a_schedules_arguments_are_taken_as_they_are() -> None:
    entry = ScheduleConfig(cron="0 3 * * *", task="m.f", queue="q", args=[1, {"a": None}], kwargs={"b": [2]})
    assert (entry.args, entry.kwargs, entry.catch_up, entry.timezone) == ([1, {"a": None}], {"b": [2]}, "last", "UTC")


# hash


def test_equal_configs_have_one_hash_and_a_changed_one_has_another() -> None:
    assert config().hash == config().hash
    assert len({config(line).hash for line in ("", "max_strikes: 4", "logging: {level: debug}", "path: [.., .]")}) == 4
    assert len(config().hash) == 12


def test_a_changed_copy_has_a_hash_of_its_own() -> None:
    first = config()
    before = first.hash
    copy = first.model_copy(update={"max_strikes": 4})
    assert copy.hash != before
    assert copy.hash == config("max_strikes: 4").hash


# psqworker's config


def queue_object(**more: Any) -> Any:
    broker = SimpleNamespace(url="pubsub://p?endpoint=localhost:1")
    storage = SimpleNamespace(url="datastore://p", store_on_status=("finished",))
    values = {"name": "fast", "broadcast": False, "client": SimpleNamespace(broker=broker), "storage": storage}
    return SimpleNamespace(**{**values, **more})


def test_a_queue_object_gives_the_config_of_its_daemon() -> None:
    got = Config.for_queue(queue_object(), imports=["m", "m"], paths=["/a", "/b", "/a"], concurrency=7)
    assert (got.broker, got.storage) == ("pubsub://p?endpoint=localhost:1", "datastore://p")
    assert (got.imports, got.path) == (["m"], ["/a", "/b"])
    assert got.queues == {"fast": QueueConfig(concurrency=7, store_on_status=["finished"])}


def test_a_queue_object_may_lack_imports_and_storage_and_be_broadcast() -> None:
    got = Config.for_queue(queue_object(storage=None, broadcast=True))
    assert (got.storage, got.imports, got.path) == ("none", [], [])
    assert got.queues["fast"] == QueueConfig(type="broadcast")


@pytest.mark.parametrize(
    ("more", "options", "said"),
    [
        ({}, {"imports": ["a-b"]}, "item 1 of `imports` must be a module"),
        ({}, {"concurrency": 0}, "`concurrency` in queues.fast must be a whole number from 1 to 10,000, not 0"),
        ({"name": "x-dead"}, {}, "`x-dead` in queues ends in -dead"),
    ],
)
def test_a_queue_object_or_option_that_is_wrong_is_told(
    more: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as failed:
        Config.for_queue(queue_object(**more), **options)
    assert str(failed.value).startswith(said)


# --print-config


def test_what_is_printed_reads_back_as_the_same_config() -> None:
    text = as_yaml(loads(SHIPPED, environ={"PSQ_BROKER": "pubsub://p", "PSQD_HTTP_PORT": "80"}))
    assert loads(text, environ={}) == loads(SHIPPED, environ={"PSQ_BROKER": "pubsub://p", "PSQD_HTTP_PORT": "80"})


def test_secrets_are_printed_as_stars() -> None:
    text = as_yaml(config("broker: pubsub://user:s3cret@p?endpoint=e&token=s3cret\nhttp: {bind: 'h:1', token: s3cret}"))
    assert "s3cret" not in text
    assert "token: '***'" in text
    assert "pubsub://user:***@p?endpoint=e&token=***" in text


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("sqlite:///a@b:c/x", "sqlite:///a@b:c/x"),
        ("redis://:pw@h:6379/0", "redis://:***@h:6379/0"),
        ("redis://u:p@w@h/0", "redis://u:***@h/0"),
        ("datastore://p/db?namespace=n&api_key=k&x=", "datastore://p/db?namespace=n&api_key=***&x="),
        ("none", "none"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, masked: str) -> None:
    assert masked_url(url) == masked


_names = st.text(min_size=1, max_size=8).filter(lambda name: not queue_name_problem(name))
_seconds = st.floats(10, 600) | st.integers(10, 600)
_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
_queues = st.fixed_dictionaries(
    {},
    optional={
        "concurrency": st.integers(1, 10_000),
        "type": st.sampled_from(["shared", "broadcast"]),
        "ack": st.sampled_from(["late", "early"]),
        "lease": _seconds,
        "ack_deadline": _seconds,
        "retries": st.integers(0, 100),
        "retry": st.fixed_dictionaries({}, optional={"first": st.floats(0, 3600), "jitter": st.floats(0, 1)}),
        "time_limit": st.none() | st.floats(1e-6, 1e7),
        "store_on_status": st.lists(st.sampled_from(STATES), unique=True),
        "result_ttl": st.floats(1, 1e9),
        "extra_context": st.none() | st.just("m:a.b"),
    },
)


@settings(max_examples=settings().max_examples * 3 // 2, deadline=None)
@given(
    queues=st.dictionaries(_names, _queues, max_size=3),
    token=st.none() | _texts,
    file=st.none() | _texts | st.sampled_from(["1e3", "on", "${A}", "$${A}", "~", "0x1", "1.", "- a", "a: b", "#"]),
    path=st.lists(_texts, unique=True, max_size=3),
)
@example(queues={"0": {}}, token=None, file="a\u2028b", path=["\x85"])
def test_any_config_that_is_printed_reads_back_as_the_same(
    queues: dict[str, Any], token: str | None, file: str | None, path: list[str]
) -> None:
    raw = {"queues": queues, "imports": ["m"], "path": path, "http": {"bind": "h:1", "token": token}}
    first = Config.model_validate({**raw, "logging": {"file": file}})
    text = as_yaml(first, secrets=True)
    if queues:
        assert loads(text, environ={}) == first


def test_every_key_says_what_it_does_and_what_a_reload_does() -> None:
    models: list[type[BaseModel]] = [Config, QueueConfig, QueueDefaults, RetryConfig, HttpConfig, LoggingConfig]
    for model in models:
        for name, field in model.model_fields.items():
            assert field.description, name
            assert field.description.endswith("."), name
            extra: Any = field.json_schema_extra
            assert extra["reload"] in ("live", "renew", "restart")
