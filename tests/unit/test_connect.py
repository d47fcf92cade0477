"""From a URL, the environment or Google's own client objects to a client; and what wrong ones are told."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import psq
import psq.connect  # a module that is callable
from psq.connect import be_default, broker_of, checked, default_client, default_path, sqlite_path, storage_of
from psq.notices import notices
from tests.unit.memory import MemoryBroker, MemoryStorage
from tests.unit.sample_tasks import adder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own, and no clients left from others."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(psq.connect, "_clients", {})
    yield tmp_path
    for client in psq.connect._clients.values():
        client.close()


# URLs


@pytest.mark.parametrize(
    ("url", "spelling"),
    [
        ("sqlite:///var/lib/psq.db", "sqlite:///var/lib/psq.db"),
        ("sqlite:////var/lib/psq.db", "sqlite:///var/lib/psq.db"),
        ("sqlite://///var//lib/psq.db", "sqlite:///var//lib/psq.db"),
        ("sqlite:///a b/ü.db", "sqlite:///a b/ü.db"),
        ("sqlite:///a.db?synchronous=normal", "sqlite:///a.db?synchronous=normal"),
        ("pubsub://my-project", "pubsub://my-project"),
        ("pubsub://my-project?prefix=shop-", "pubsub://my-project?prefix=shop-"),
    ],
)
def test_a_brokers_url_has_one_spelling(url: str, spelling: str) -> None:
    assert checked(url) == spelling
    assert psq.connect(url).url == spelling


def test_nothing_after_the_scheme_is_the_default_file(home: Path) -> None:
    assert checked("sqlite://") == f"sqlite://{home}/state/psq/psq.db"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite://psq.db", rf"must be absolute: write sqlite://{os.getcwd()}/psq\.db$"),
        ("sqlite://a/psq.db?x=1", rf"write sqlite://{os.getcwd()}/a/psq\.db\?x=1$"),
        ("sqlite://~/psq.db", rf"write sqlite://{os.path.expanduser('~')}/psq\.db$"),
        ("sqlite:///", "names a folder: write the file's path"),
        ("sqlite:///var/", r"names a folder.*sqlite:///var/psq\.db"),
        ("sqlite:/var/psq.db", "the scheme ends in '://'"),
        ("/var/psq.db", "is no URL of a broker: write pubsub://PROJECT.*or sqlite:///PATH"),
        ("sqlit:///var/psq.db", "did you mean sqlite?"),
        ("pub-sub://p", "did you mean pubsub?"),
        ("pubsub://", "names no project"),
        ("pubsub://?prefix=x", "names no project"),
        ("datastore://p", "is no URL of a broker"),
        ("redis://h", "is no URL of a broker"),
        ("", "is no URL of a broker"),
        (None, "is a text like"),
    ],
)
def test_a_wrong_brokers_url_is_told_what_is_valid(url: Any, words: str) -> None:
    with pytest.raises(psq.ConfigError, match=words):
        checked(url)
    with pytest.raises(psq.ConfigError, match=words):
        broker_of(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite://psq.db", "must be absolute"),
        ("redis://h", "not available yet"),
        ("memcached://h", "not available yet"),
        ("pubsub://p", r"is no URL of a storage: .*write datastore://PROJECT\[/DATABASE\], sqlite:///PATH or none"),
        ("non", "did you mean none?"),
        ("", "is no URL of a storage"),
    ],
)
def test_a_wrong_storages_url_is_told_what_is_valid(url: str, words: str) -> None:
    with pytest.raises(psq.ConfigError, match=words):
        storage_of(url, "sqlite:///x.db")


def test_none_is_no_storage() -> None:
    assert storage_of("none") is None


def test_a_storage_without_a_path_is_the_brokers_file_else_the_default(home: Path) -> None:
    for broker_url, path in (
        (f"sqlite://{home}/b.db", f"{home}/b.db"),
        ("pubsub://p", default_path()),
        ("", default_path()),
    ):
        storage = storage_of("sqlite://", broker_url)
        assert storage is not None
        assert storage.url == f"sqlite://{path}"
        storage.close()


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"XDG_STATE_HOME": "/s"}, "/s/psq/psq.db"),
        ({"XDG_STATE_HOME": "relative"}, "/h/.local/state/psq/psq.db"),
        ({"XDG_STATE_HOME": ""}, "/h/.local/state/psq/psq.db"),
        ({}, "/h/.local/state/psq/psq.db"),
    ],
)
def test_where_the_default_file_is(environ: dict[str, str], path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert default_path(environ) == path
    assert sqlite_path("sqlite://", default_path(environ)) == path


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'grpc'", name="grpc")

    monkeypatch.setattr(psq.connect, "import_module", absent)
    with pytest.raises(psq.MissingDependency, match="pubsub:// needs the module grpc: pip install psqd"):
        broker_of("pubsub://p")


# clients


def test_a_client_is_made_of_one_thing() -> None:
    for arguments in ({}, {"url": "pubsub://p", "project": "p"}, {"project": "p", "broker": MemoryBroker()}):
        with pytest.raises(psq.ConfigError, match="one of: a URL, project"):
            psq.Client(**arguments)


def test_making_a_client_and_a_queue_loads_no_client_library() -> None:
    before = set(sys.modules)
    q = psq.Queue(psq.Client(project="p"), "fast")
    assert q.storage is None
    with pytest.raises(psq.NoStorage):
        psq.TaskResult("abc", q).result()
    assert {name for name in set(sys.modules) - before if name.split(".")[0] in ("google", "grpc", "gevent")} == set()
    assert repr(q.client) == "<psq.Client pubsub://p>"


def test_a_broker_that_was_handed_in_is_its_makers_to_close() -> None:
    broker = MemoryBroker()
    with psq.Client(broker=broker) as client:
        assert client.broker is broker
        assert client.url == "memory://"
    assert broker.closes == 0


def test_a_client_of_a_url_closes_its_broker_and_can_be_used_again(home: Path) -> None:
    with psq.connect(f"sqlite://{home}/a.db") as client:
        q = psq.Queue(client)
        first, storage = client.broker, q.storage
        q.enqueue(adder, 1)
    assert client.broker is not first
    assert q.storage is not storage
    q.enqueue(adder, 1)
    client.close()
    client.close()


def test_sqlite_keeps_results_in_its_own_file_and_pubsub_keeps_none(home: Path) -> None:
    with psq.connect(f"sqlite://{home}/a.db") as client:
        storage = psq.Queue(client).storage
        assert storage is not None
        assert storage.url == f"sqlite://{home}/a.db"
        assert psq.Queue(client, "other").storage is storage
        assert psq.Queue(client, storage=None).storage is None
        assert psq.Queue(client, storage="none").storage is None
        other = psq.Queue(client, storage=f"sqlite://{home}/other.db").storage
        assert other is not None
        assert other.url == f"sqlite://{home}/other.db"
        same = psq.Queue(client, storage="sqlite://").storage
        assert same is not None
        assert same.url == storage.url
    assert psq.Queue(psq.Client(project="p")).storage is None


def test_a_clients_storage_is_what_its_queues_use_that_name_none(home: Path) -> None:
    storage = MemoryStorage()
    assert psq.Queue(psq.Client(project="p", storage=storage)).storage is storage
    assert psq.Queue(psq.connect("pubsub://p", storage=storage)).storage is storage
    assert psq.Queue(psq.Client(f"sqlite://{home}/a.db", storage=None)).storage is None
    given = MemoryStorage()
    assert psq.Queue(psq.Client(project="p", storage=storage), storage=given).storage is given


@pytest.mark.parametrize("storage", [5, object(), MemoryStorage])
def test_a_storage_is_an_object_or_a_url(storage: Any) -> None:
    with pytest.raises(psq.ConfigError, match=r"a storage object such as psq\.DatastoreStorage"):
        psq.Queue(psq.Client(project="p"), storage=storage)
    with pytest.raises(psq.ConfigError, match=r"a storage object such as psq\.DatastoreStorage"):
        _ = psq.Client(project="p", storage=storage).storage


# the default


def test_without_anything_it_is_the_embedded_default_with_results_on(home: Path) -> None:
    q = psq.Queue()
    result = q.enqueue(adder, 5, 6)
    assert q.client.url == f"sqlite://{home}/state/psq/psq.db"
    assert result.status == "unknown"
    assert psq.Queue(name="other").client is q.client


def test_the_environment_names_broker_and_storage(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSQ_BROKER", f"sqlite://{home}/b.db")
    q = psq.Queue()
    assert q.client.url == f"sqlite://{home}/b.db"
    assert q.storage is not None
    assert q.storage.url == f"sqlite://{home}/b.db"
    monkeypatch.setenv("PSQ_STORAGE", f"sqlite://{home}/s.db")
    other = psq.Queue()
    assert other.client is not q.client
    assert other.storage is not None
    assert other.storage.url == f"sqlite://{home}/s.db"
    monkeypatch.setenv("PSQ_STORAGE", "none")
    assert psq.Queue().storage is None
    monkeypatch.setenv("PSQ_BROKER", "pubsub://p")
    monkeypatch.setenv("PSQ_STORAGE", "")
    assert psq.Queue().client.url == "pubsub://p"
    assert psq.Queue().storage is None
    monkeypatch.setenv("PSQ_BROKER", "nonsense")
    with pytest.raises(psq.ConfigError, match="'nonsense' is no URL of a broker"):
        _ = psq.Queue().client


def test_with_a_client_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSQ_STORAGE", "nonsense")
    assert psq.Queue(psq.Client(project="p")).storage is None
    assert default_client({"PSQ_BROKER": "pubsub://p"}).url == "pubsub://p"


# signatures


def test_todays_signature_by_position_and_name() -> None:
    client, storage = psq.Client(project="p"), MemoryStorage()

    def context() -> Any: ...

    for q in (
        psq.Queue(client, "fast", storage, context, False),
        psq.Queue(client, name="fast", storage=storage, extra_context=context, asynchronous=False),
    ):
        assert (q.client, q.name, q.storage, q.extra_context, q.asynchronous) == (
            client,
            "fast",
            storage,
            context,
            False,
        )
    q = psq.Queue(extra_context=[context, context])
    assert q.extra_context == (context, context)


def google_client(endpoint: str = "europe-west1-pubsub.googleapis.com:443") -> Any:
    credentials = types.SimpleNamespace()
    return types.SimpleNamespace(transport=types.SimpleNamespace(host=endpoint, _credentials=credentials))


def test_psq_0_8s_signature_by_position_and_name() -> None:
    storage = MemoryStorage()
    publisher, subscriber = google_client(), google_client()
    for q in (
        psq.Queue(publisher, subscriber, "my-project", "fast", storage),
        psq.Queue(publisher, subscriber, "my-project", name="fast", storage=storage, extra_context=None),
        psq.Queue(
            publisher_client=publisher, subscriber_client=None, project="my-project", name="fast", storage=storage
        ),
        psq.Queue(publisher, None, "my-project", "fast", storage),
    ):
        assert q.client.url == "pubsub://my-project"
        assert (q.name, q.storage) == ("fast", storage)
    assert psq.Queue(publisher, subscriber, "my-project").name == "default"
    assert psq.BroadcastQueue(publisher, subscriber, "my-project").name == "broadcast"
    assert psq.Queue(publisher, subscriber, "my-project", storage=None).storage is None


def test_credentials_and_endpoint_of_googles_objects_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import psq.brokers.pubsub

    made: dict[str, Any] = {}

    class Recorded(MemoryBroker):
        def __init__(self, project: str, **settings: Any) -> None:
            super().__init__()
            made.update(settings, project=project)

    monkeypatch.setattr(psq.brokers.pubsub, "PubSubBroker", Recorded)
    publisher = google_client()
    psq.Queue(publisher, google_client(), "my-project").enqueue(adder, 1)
    assert made["project"] == "my-project"
    assert made["endpoint"] == "europe-west1-pubsub.googleapis.com:443"
    assert made["credentials"] is publisher.transport._credentials


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "words"),
    [
        (("sqlite:///x.db",), {}, psq.ConfigError, r"write psq\.Queue\(psq\.connect\('sqlite:///x\.db'\)\)"),
        (("fast",), {}, psq.ConfigError, r"write psq\.Queue\(name='fast'\)"),
        ((google_client(),), {}, psq.ConfigError, r"not a SimpleNamespace: write psq\.Client\(project=…\)"),
        ((google_client(), google_client()), {}, psq.ConfigError, "publisher_client, subscriber_client, 'project-id'"),
        ((object(), None, "p"), {}, psq.ConfigError, "is no client of google-cloud-pubsub"),
        ((None, "fast", None, None, True, 1), {}, TypeError, "at most 5 positional arguments"),
        ((None, "fast"), {"name": "x"}, TypeError, "two values for the argument 'name'"),
        ((), {"nome": "x"}, TypeError, "no argument 'nome'; there are client, name"),
        ((), {"extra_context": 5}, psq.ConfigError, "extra_context takes a callable"),
        ((), {"extra_context": [5]}, psq.ConfigError, "extra_context takes a callable"),
    ],
)
def test_other_arguments_are_told_what_to_write(args: Any, kwargs: Any, error: type[Exception], words: str) -> None:
    if args == (object(), None, "p"):
        args = (types.SimpleNamespace(), None, "p")
    with pytest.raises(error, match=words):
        psq.Queue(*args, **kwargs)


def test_a_broker_is_taken_for_a_client() -> None:
    broker: Any = MemoryBroker()
    assert psq.Queue(broker).client.broker is broker


# notices


class Embedded(MemoryBroker):
    scheme = "sqlite"
    seen: float | None = None
    error: Exception | None = None

    def daemon_seen(self) -> float | None:
        if self.error is not None:
            raise self.error
        return self.seen


def test_a_file_that_no_daemon_opened_is_told() -> None:
    broker = Embedded()
    (notice,) = notices(broker, {})
    assert notice.startswith("no daemon has ever opened memory://")
    broker.seen = 5.0
    assert list(notices(broker, {})) == []
    broker.error = psq.BrokerUnavailable("can't look")
    assert list(notices(broker, {})) == []
    assert list(notices(MemoryBroker(), {"K_SERVICE": "x"})) == []


def test_a_file_on_google_cloud_is_told() -> None:
    broker = Embedded()
    broker.seen = 5.0
    (notice,) = notices(broker, {"K_SERVICE": "x"})
    assert "set PSQ_BROKER=pubsub://PROJECT" in notice


def test_the_notice_comes_once(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    q = psq.Queue()
    q.enqueue(adder, 1)
    q.enqueue(adder, 1)
    psq.Queue(name="other").enqueue(adder, 1)
    assert caplog.text.count("no daemon has ever opened sqlite://") == 1


# the daemon's own


SHOP, RESULTS = "pubsub://shop", "datastore://shop"


def test_a_daemons_broker_and_storage_are_the_default_of_its_tasks() -> None:
    environ: dict[str, str] = {}
    broker, storage = MemoryBroker(), MemoryStorage()
    be_default(broker, storage, SHOP, RESULTS, environ)
    assert environ == {"PSQ_BROKER": SHOP, "PSQ_STORAGE": RESULTS}
    client = default_client(environ)
    assert (client.broker, client.storage) == (broker, storage)


def test_a_daemon_without_a_storage_gives_its_tasks_none() -> None:
    environ: dict[str, str] = {}
    be_default(MemoryBroker(), None, SHOP, "none", environ)
    assert environ["PSQ_STORAGE"] == "none"
    assert default_client(environ).storage is None


@pytest.mark.parametrize("storage", [{}, {"PSQ_STORAGE": "none"}])
def test_an_environment_that_names_another_broker_is_left_as_it_is(storage: dict[str, str]) -> None:
    environ = {"PSQ_BROKER": "pubsub://other", **storage}
    before = dict(environ)
    be_default(MemoryBroker(), MemoryStorage(), SHOP, RESULTS, environ)
    assert environ == before
    assert default_client(environ).url == "pubsub://other"


def test_an_environment_that_names_another_storage_keeps_it() -> None:
    environ = {"PSQ_BROKER": SHOP, "PSQ_STORAGE": "none"}
    be_default(MemoryBroker(), MemoryStorage(), SHOP, RESULTS, environ)
    assert environ == {"PSQ_BROKER": SHOP, "PSQ_STORAGE": "none"}
    assert default_client(environ).storage is None
