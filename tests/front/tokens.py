"""Who calls: tokens that real google-auth fetches with a service account, or signs itself."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["BadToken", "Caller", "Tokens"]

#: Longest life of a self-signed token, seconds.
SELF_SIGNED_SECONDS = 3600.0


class BadToken(Exception):
    """No token, an unknown one, one that is over, or a revoked one."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a token stands for, and until when (time.time())."""

    email: str
    until: float


class Tokens:
    """Gives tokens, and checks them.

    Args:
        public_key: Of the key that the accounts sign with, PEM.
    """

    def __init__(self, public_key: bytes) -> None:
        self.seconds = 300.0
        self.given = 0
        self.permissions: dict[str, frozenset[str]] = {}  # email -> what it may; all where it is not here
        self.lives: dict[str, float] = {}  # email -> seconds of its tokens, where not `seconds`
        self._key = public_key
        self._known: dict[str, Caller] = {}
        self._revoked: set[str] = set()

    def give(self, assertion: str) -> tuple[str, float]:
        """A token for a signed assertion, and its seconds.

        Raises:
            BadToken: It is not signed by one of our accounts.
        """
        email = str(self._claims(assertion).get("iss", ""))
        token, seconds = f"ya29.{secrets.token_urlsafe(48)}", self.lives.get(email, self.seconds)
        self._known[token] = Caller(email, time.time() + seconds)
        self.given += 1
        return token, seconds

    def check(self, header: str) -> Caller:
        """The caller of an authorization header.

        Raises:
            BadToken: There is none.
        """
        token = header.removeprefix("Bearer ")
        if not token or token == header:
            raise BadToken("no bearer token")
        caller = self._known.get(token)
        if caller is None and token.count(".") == 2:  # signed by the account itself, no token server in between
            claims = self._claims(token)
            until = min(float(claims["exp"]), float(claims["iat"]) + SELF_SIGNED_SECONDS)
            caller = self._known[token] = Caller(str(claims.get("iss", "")), until)
        if caller is None or token in self._revoked:
            raise BadToken("unknown or revoked token")
        if caller.until < time.time():
            raise BadToken("the token is over")
        return caller

    def revoke(self) -> None:
        """No token that was seen so far is good any more."""
        self._revoked.update(self._known)

    def allow(self, email: str, permissions: Iterable[str] | None, seconds: float | None = None) -> None:
        """What an account may do, None: everything; and for how long its tokens live, None: like all others."""
        if seconds is None:
            self.lives.pop(email, None)
        else:
            self.lives[email] = seconds
        if permissions is None:
            self.permissions.pop(email, None)
        else:
            self.permissions[email] = frozenset(permissions)

    def may(self, email: str, permission: str) -> bool:
        """True where the account has the permission."""
        granted = self.permissions.get(email)
        return granted is None or permission in granted

    def reset(self) -> None:
        """As at the start, but for the tokens that are out: they stay good."""
        self.seconds, self.given = 300.0, 0

    def _claims(self, token: str) -> dict[str, Any]:
        from google.auth import jwt

        try:
            claims: dict[str, Any] = dict(jwt.decode(token, certs=self._key, verify=True))  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise BadToken(str(error)) from error
        return claims
