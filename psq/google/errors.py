"""What a gRPC call may end with, and what it means: will it go away by itself, and was anything sent?"""

from __future__ import annotations

from typing import Any

from psq.errors import BrokerRefused, BrokerUnavailable, PsqError, PublishUnknown, StorageRefused, StorageUnavailable

__all__ = ["CallError", "broker_error", "error_of", "is_transient", "publish_error", "storage_error"]

#: Codes that may go away by themselves. UNKNOWN is what a broken connection ends with in some versions of
#: gRPC; UNAUTHENTICATED is a token that was revoked early: the channel throws it away, the next call has another.
TRANSIENT_CODES = frozenset(
    (
        "ABORTED",
        "CANCELLED",
        "DEADLINE_EXCEEDED",
        "INTERNAL",
        "RESOURCE_EXHAUSTED",
        "UNAUTHENTICATED",
        "UNAVAILABLE",
        "UNKNOWN",
    )
)

#: Codes with which the server itself says that it did nothing.
_REFUSED_CODES = frozenset(
    (
        "ALREADY_EXISTS",
        "FAILED_PRECONDITION",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "OUT_OF_RANGE",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "UNAUTHENTICATED",
        "UNIMPLEMENTED",
    )
)

#: What gRPC says when a request never left this process, or was refused unread (HTTP/2's REFUSED_STREAM).
_NOT_SENT = (
    "failed to connect",
    "errors resolving",
    "dns resolution failed",
    "name resolution failure",
    "getting metadata from plugin failed",
    "refused_stream",
    "rst_stream with error code 7)",  # the same, as grpcio 1.85 words it
    "empty address list",
)

#: Codes that gRPC makes up in this process as well, so that they are no proof of a living server.
_LOCAL_CODES = frozenset(("CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "UNKNOWN"))


class CallError(Exception):
    """One call's end that was no answer. The seams translate it; it never reaches a user.

    Attributes:
        code: gRPC's name of the status, ``UNAVAILABLE``.
        details: The server's text, or gRPC's own.
        transient: It may go away by itself.
        sent: The request may have reached the server and taken effect.
    """

    def __init__(self, code: str, details: str, *, transient: bool | None = None, sent: bool | None = None) -> None:
        super().__init__(f"{code}: {details}" if details else code)
        self.code = code
        self.details = details
        self.transient = code in TRANSIENT_CODES if transient is None else transient
        self.sent = not _never_left(code, details) if sent is None else sent

    @property
    def from_server(self) -> bool:
        """True where only the server can have said this."""
        return self.code not in _LOCAL_CODES


def _never_left(code: str, details: str) -> bool:
    if code in _REFUSED_CODES:
        return True
    lower = details.lower()
    return any(text in lower for text in _NOT_SENT)


def error_of(call: Any) -> CallError:
    """The error of a gRPC call that ended otherwise than OK.

    Args:
        call: A `grpc.Call` that is done.
    """
    return CallError(call.code().name, call.details() or "")


def is_transient(error: Exception) -> bool:
    """For `GroupCommit`: True where a call may be tried again."""
    return isinstance(error, CallError) and error.transient


#: Statuses that no record is at fault for.
_NOT_THE_RECORD = frozenset(
    {"PERMISSION_DENIED", "UNAUTHENTICATED", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"}
)

#: What grants access to Datastore.
_MISSING_ROLE = (
    " (reading takes roles/datastore.viewer, writing roles/datastore.user: gcloud projects add-iam-policy-binding "
    "PROJECT --member=serviceAccount:ACCOUNT --role=…)"
)


def _hint(error: CallError) -> str:
    if error.code == "UNAUTHENTICATED":
        return " (credentials: gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS)"
    return ""


def broker_error(error: Exception, what: str) -> PsqError:
    """What a broker raises for a call that changes nothing when it is repeated.

    Args:
        error: The call's error.
        what: What was being done, for the text: ``creating the subscription projects/…``.
    """
    if isinstance(error, PsqError):
        return error
    if isinstance(error, CallError):
        text = f"{what}: {error}{_hint(error)}"
        if error.transient and error.code != "UNAUTHENTICATED":
            return BrokerUnavailable(text)
        return BrokerRefused(text)
    if isinstance(error, TimeoutError):
        return BrokerUnavailable(f"{what}: {error}")
    return BrokerRefused(f"{what}: {type(error).__name__}: {error}")


def publish_error(error: Exception, what: str, *, task_id: str | None, maybe_sent: bool) -> PsqError:
    """What a publish ends with.

    Args:
        error: The last request's error; a TimeoutError where the time was over before there was another.
        what: What was being done, for the text.
        task_id: The task, or None.
        maybe_sent: One of the requests with this task may have been accepted.
    """
    if maybe_sent and (isinstance(error, TimeoutError) or is_transient(error)):
        text = f"{what}: no answer ({error}); it may have been accepted: enqueue again with the same task id"
        return PublishUnknown(text, task_id=task_id)
    return broker_error(error, what)


def storage_error(error: Exception, what: str) -> PsqError:
    """What a storage raises for a call. See `broker_error`."""
    if isinstance(error, PsqError):
        return error
    if isinstance(error, CallError):
        text = f"{what}: {error}{_MISSING_ROLE if error.code == 'PERMISSION_DENIED' else _hint(error)}"
        if error.transient and error.code != "UNAUTHENTICATED":
            return StorageUnavailable(text)
        refused = StorageRefused(text)
        refused.everything = error.code in _NOT_THE_RECORD
        return refused
    return StorageRefused(f"{what}: {type(error).__name__}: {error}")
