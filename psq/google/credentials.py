"""Who we are to Google: google-auth's credentials, as gRPC takes them.

google-auth has a plugin for gRPC that gives each call its token. gRPC asks it in a thread of its own, or, in a
process that gevent has patched, in a greenlet: a third of what an idle daemon with 1,000 queues cost. So the plugin
is asked for one call alone now and then, and what it said goes along with the other calls as plain metadata.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from psq.errors import BrokerRefused, MissingDependency
from psq.google.calls import Target

__all__ = ["Identity"]

#: Least seconds between two tokens that are thrown away where the server took none in between.
TOKEN_PAUSE = 5.0
#: Seconds before its end when a token is replaced; google-auth's own REFRESH_THRESHOLD, which it keeps to.
STALE = 225.0
#: Seconds before its end from when it is not used any more: clocks differ, and calls take their time.
TOO_LATE = 10.0
#: Seconds for which what has no end is used before google-auth is asked again.
ENDLESS = 60.0
#: Seconds for which the others go on with a stale token while one call asks for a new one.
ASKING = 30.0

#: Headers of a call.
Headers = Sequence[tuple[str, str]]


@dataclass(slots=True)
class _Token:
    """What the plugin said. `stale_at`, `over_at`: Unix times; `asked_until`: somebody asks for the next until then."""

    headers: Headers
    stale_at: float
    over_at: float
    asked_until: float = 0.0


class Identity:
    """The credentials of one channel.

    Args:
        grpc: The module.
        target: Where the channel leads.

    Attributes:
        channel_credentials: For `grpc.secure_channel`: TLS. Each call says who we are, see `of`.

    Raises:
        BrokerRefused: There are no credentials.
        MissingDependency: google-auth is not installed.
    """

    def __init__(self, grpc: Any, target: Target) -> None:
        try:
            import google.auth
            from google.auth import credentials as auth
            from google.auth.transport import grpc as auth_grpc
            from google.auth.transport.requests import Request
        except ImportError as error:
            raise MissingDependency("Google's services need google-auth: pip install google-cloud-pubsub") from error
        try:
            if target.credentials is None:
                credentials, _ = google.auth.default(scopes=list(target.scopes))
            else:
                credentials = auth.with_scopes_if_required(target.credentials, list(target.scopes))  # type: ignore[no-untyped-call]
        except (google.auth.exceptions.GoogleAuthError, OSError) as error:  # OSError: we may not read the file
            raise BrokerRefused(
                f"no credentials for {target.address}: {error} (gcloud auth application-default login)"
            ) from error
        if target.quota_project and hasattr(credentials, "with_quota_project"):
            credentials = credentials.with_quota_project(target.quota_project)
        # A service account signs its own tokens for Google's own hosts: no token server in between.
        google_host = target.address.partition(":")[0].endswith(".googleapis.com")
        if google_host and hasattr(credentials, "with_always_use_jwt_access"):
            credentials = credentials.with_always_use_jwt_access(True)
        self.channel_credentials: Any = grpc.ssl_channel_credentials()
        self._plugin = auth_grpc.AuthMetadataPlugin(credentials, Request(), default_host=target.audience or None)  # type: ignore[no-untyped-call]
        self._asking: Any = grpc.metadata_call_credentials(self._ask)
        self._credentials: Any = credentials
        self._tokens: dict[str, _Token] = {}  # by service: some credentials sign a token for each
        self._thrown_at = 0.0

    def of(self, path: str) -> tuple[Headers, Any]:
        """What says who we are.

        Args:
            path: Of the method, ``/google.pubsub.v1.Subscriber/Pull``.

        Returns:
            Headers for the call, and its call credentials: None where the headers do.
        """
        token, now = self._tokens.get(path.rpartition("/")[0]), time.time()
        if token is None or now >= token.over_at:
            return (), self._asking
        if now >= token.stale_at and now >= token.asked_until:
            token.asked_until = now + ASKING
            return (), self._asking
        return token.headers, None

    def _ask(self, context: Any, callback: Callable[[Any, Exception | None], None]) -> None:
        """For gRPC, which calls it in a thread or greenlet and hands what it raises to the call."""
        self._plugin(context, partial(self._said, "/" + context.service_url.split("/", 3)[-1], callback))

    def _said(
        self, service: str, callback: Callable[[Any, Exception | None], None], headers: Headers, error: Exception | None
    ) -> None:
        token = getattr(self._credentials, "token", None)  # another thread may have fetched the next meanwhile
        if error is None and (not token or any(value.endswith(token) for _, value in headers)):
            expiry, now = getattr(self._credentials, "expiry", None), time.time()  # expiry: naive, UTC
            end = calendar.timegm(expiry.utctimetuple()) if expiry is not None else now + ENDLESS + STALE
            self._tokens[service] = _Token(tuple(headers), end - STALE, end - TOO_LATE)
        callback(headers, error)

    @property
    def account(self) -> str:
        """Email of the service account, "" where it is none or not known (yet)."""
        email = getattr(self._credentials, "service_account_email", "") or ""
        return email if isinstance(email, str) and "@" in email else ""

    def refused(self, began: float, accepted_at: float) -> None:
        """The server did not take a token (revoked, or a clock is wrong): google-auth fetches another.

        Args:
            began: Monotonic instant of the call's start: whether it had the last token, or one before.
            accepted_at: Monotonic instant of the last answer to a token that was good. A server that takes none
                is asked with a new one now and then alone.
        """
        now = time.monotonic()
        if began < self._thrown_at or (accepted_at < self._thrown_at and now - self._thrown_at < TOKEN_PAUSE):
            return
        self._thrown_at = now
        self._tokens.clear()
        self._credentials.token = None
        self._credentials.expiry = None
