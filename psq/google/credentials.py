"""Who we are to Google: google-auth's credentials, as gRPC takes them."""

from __future__ import annotations

import time
from typing import Any

from psq.errors import BrokerRefused, MissingDependency
from psq.google.calls import Target

__all__ = ["Identity"]

#: Least seconds between two tokens that are thrown away where the server took none in between.
TOKEN_PAUSE = 5.0


class Identity:
    """The credentials of one channel.

    Args:
        grpc: The module.
        target: Where the channel leads.

    Attributes:
        channel_credentials: For `grpc.secure_channel`.

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
        plugin = auth_grpc.AuthMetadataPlugin(credentials, Request(), default_host=target.audience or None)  # type: ignore[no-untyped-call]
        self.channel_credentials: Any = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(), grpc.metadata_call_credentials(plugin)
        )
        self._credentials: Any = credentials
        self._thrown_at = 0.0

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
        self._credentials.token = None
        self._credentials.expiry = None
