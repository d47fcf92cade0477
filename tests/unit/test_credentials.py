"""Which calls are given a token that is at hand, and which have google-auth asked for one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from google.auth.credentials import Credentials

from psq.google.calls import Target
from psq.google.credentials import ASKING, STALE, TOO_LATE, Headers, Identity

PULL, ACK = "/google.pubsub.v1.Subscriber/Pull", "/google.pubsub.v1.Subscriber/Acknowledge"
PUBLISH = "/google.pubsub.v1.Publisher/Publish"


class Account(Credentials):
    """Gives numbered tokens."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds, self.fetched = seconds, 0
        self.after_refresh: Callable[[], None] = lambda: None

    def refresh(self, request: Any) -> None:
        self.fetched += 1
        self.token = f"token-{self.fetched}"
        now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
        self.expiry = None if self.seconds is None else now + dt.timedelta(seconds=self.seconds)

    def apply(self, headers: Any, token: str | None = None) -> None:
        super().apply(headers, token)  # type: ignore[no-untyped-call]
        self.after_refresh()


class Clock:
    """In place of time.time, ahead of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import time

        self.ahead, real = 0.0, time.time
        monkeypatch.setattr(
            "psq.google.credentials.time", SimpleNamespace(time=lambda: real() + self.ahead, monotonic=time.monotonic)
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def identity(account: Account) -> Identity:
    # In place of gRPC: call credentials are the plugin itself, for `asked` to call.
    grpc = SimpleNamespace(ssl_channel_credentials=lambda: "TLS", metadata_call_credentials=lambda plugin: plugin)
    return Identity(grpc, Target("localhost:443", credentials=account))


def asked(who: Identity, path: str) -> bool:
    """Begin a call as gRPC does; True where the plugin is asked for its token."""
    headers, plugin = who.of(path)
    assert bool(headers) != bool(plugin)
    if plugin is None:
        return False
    said: list[Headers] = []
    service = path.rpartition("/")[0]
    context = SimpleNamespace(service_url=f"https://localhost:443{service}", method_name=path.rpartition("/")[2])
    plugin(context, lambda headers, error: said.append(headers))
    assert len(said) == 1
    return True


def test_one_call_asks_and_the_others_of_its_service_have_the_token() -> None:
    account = Account(3600)
    who = identity(account)
    assert [asked(who, path) for path in (PULL, PULL, ACK, PUBLISH, PUBLISH)] == [True, False, False, True, False]
    assert account.fetched == 1
    assert dict(who.of(ACK)[0])["authorization"] == "Bearer token-1"


def test_one_call_alone_asks_for_the_next_while_others_go_on_with_the_last(clock: Clock) -> None:
    account = Account(3600)
    who = identity(account)
    assert asked(who, PULL)
    clock.ahead = 3600 - STALE + 1
    assert who.of(PULL)[1] is not None  # it asks, and is not answered
    assert not asked(who, PULL)
    assert not asked(who, ACK)
    clock.ahead += ASKING
    account.token, account.seconds = None, 7200  # as google-auth's own clock would have it
    assert asked(who, PULL)  # the first one is not heard of any more
    assert not asked(who, PULL)
    assert dict(who.of(PULL)[0])["authorization"] == "Bearer token-2"


def test_a_token_that_is_over_is_not_given_to_anybody(clock: Clock) -> None:
    who = identity(Account(3600))
    assert asked(who, PULL)
    clock.ahead = 3600 - TOO_LATE + 1
    assert who.of(PULL)[1] is not None
    assert who.of(PULL)[1] is not None


def test_a_token_that_was_refused_is_thrown_away_for_all_services() -> None:
    account = Account(3600)
    who = identity(account)
    assert asked(who, PULL)
    assert asked(who, PUBLISH)
    who.refused(began=1.0, accepted_at=1.0)
    assert asked(who, PUBLISH)
    assert asked(who, PULL)
    assert account.fetched == 2


def test_a_token_without_an_end_is_asked_for_again_now_and_then(clock: Clock) -> None:
    who = identity(Account(None))
    assert asked(who, PULL)
    assert not asked(who, PULL)
    clock.ahead = 70
    assert asked(who, PULL)


def test_a_token_is_not_taken_for_the_next_that_another_thread_has_just_fetched() -> None:
    account = Account(3600)
    who = identity(account)

    def fetched_elsewhere() -> None:
        account.after_refresh = lambda: None
        account.refresh(None)

    account.after_refresh = fetched_elsewhere
    assert asked(who, PULL)  # was told token-1, while the end at hand is that of token-2
    assert asked(who, PULL)
    assert not asked(who, PULL)
    assert dict(who.of(PULL)[0])["authorization"] == "Bearer token-2"
