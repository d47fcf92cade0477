"""The front as tests steer it: plain HTTP on loopback, nothing of gRPC, so that it works in patched processes too."""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.front.certificates import ACCOUNT_KEY, CERTIFICATE

__all__ = ["Front"]

#: Project of the tests' service accounts.
PROJECT = "psq-test"


class Front:
    """A front that runs.

    Args:
        control: ``127.0.0.1:port`` of its switchboard and token server.
        folder: Where its certificate and the accounts' key are.
        pid: Of its process.

    Attributes:
        endpoint: ``localhost:port``, for ``pubsub://P?endpoint=…`` and ``datastore://P?endpoint=…``.
        pid: Of its process.
    """

    def __init__(self, control: str, folder: Path, pid: int) -> None:
        self.control, self.folder, self.pid = control, folder, pid
        self.endpoint = f"localhost:{self._do('state')['port']}"
        self._account = self.account("psq")

    def environment(self) -> dict[str, str]:
        """Variables for processes that call it: whom to trust, and who they are (an account that may everything)."""
        return {
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(self.folder / CERTIFICATE),
            "GOOGLE_APPLICATION_CREDENTIALS": self._account,
        }

    def email(self, name: str) -> str:
        """The email of an account."""
        return f"{name}@{PROJECT}.iam.gserviceaccount.com"

    def account(
        self, name: str, *, permissions: Sequence[str] | None = None, token_seconds: float | None = None
    ) -> str:
        """Make a service account; path of its file.

        Args:
            name: The first part of its email, see `email`.
            permissions: What it may, ``pubsub.topics.publish``; None: everything.
            token_seconds: Life of its tokens; None: as the manner `token_seconds` says.
        """
        self._do("allow", self.email(name), None if permissions is None else list(permissions), token_seconds)
        path = self.folder / f"{name}.json"
        account = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "1",
            "private_key": (self.folder / ACCOUNT_KEY).read_text(),
            "client_email": self.email(name),
            "client_id": "1",
            "token_uri": f"http://{self.control}/token",
        }
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(account))
        fresh.replace(path)
        return str(path)

    def rule(self, method: str = "*", **what: Any) -> int:
        """Answer some calls otherwise; the rule's number. What: see `tests.front.rules.Rule`."""
        number: int = self._do("rule", method=method, **what)
        return number

    def remove(self, rule: int) -> None:
        """End a rule."""
        self._do("remove", rule)

    def reset(self) -> None:
        """Back to the default manners, no rules, counters at zero, bytes flow."""
        self._do("reset")

    def manners(self, **what: Any) -> None:
        """Change how it answers without a rule: see `tests.front.rules.Manners`; and `token_seconds`."""
        self._do("manners", **what)

    def revoke_tokens(self) -> None:
        """Every token that was handed out so far is UNAUTHENTICATED from now on."""
        self._do("revoke")

    def refuse_streams(self, first: int) -> None:
        """Answer the first streams of each new connection, within its first second, with REFUSED_STREAM."""
        self._do("refuse", first)

    def cut(self) -> None:
        """Close every connection now."""
        self._do("cut")

    def swallow(self, seconds: float | None = None) -> None:
        """Bytes go nowhere, for so long or until `flow`; open connections stay, and are mute for good."""
        self._do("swallow", seconds)

    def flow(self) -> None:
        """New connections work again."""
        self._do("flow")

    def stats(self) -> dict[str, Any]:
        """Counters since the last reset.

        ``calls`` by method · ``errors`` by ``Method:CODE`` · ``tokens`` issued · ``unauthenticated`` ·
        long polls out: ``polls`` now, ``polls_most`` at a time, ``polls_by`` and ``polls_most_by`` subscription ·
        ``cancelled`` pulls, messages that their clients never got: ``stranded`` in all, ``stranded_by``
        subscription · ``connections`` open,
        ``connections_made`` · ``refused_streams``.
        """
        result: dict[str, Any] = self._do("stats")
        return result

    def _do(self, what: str, *args: Any, **options: Any) -> Any:
        connection = http.client.HTTPConnection(self.control, timeout=30)
        try:
            connection.request("POST", "/control", json.dumps({"do": what, "args": args, "what": options}))
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(answer["error"])
        return answer["result"]
