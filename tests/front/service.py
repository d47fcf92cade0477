"""The services' methods: who may, how soon, how much; then the emulator."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from tests.front import limits, permissions
from tests.front.limits import Refused
from tests.front.polls import Polls
from tests.front.rules import Manners, Rule, Rules
from tests.front.tokens import BadToken, Tokens

__all__ = ["Service"]

NOT_AUTHENTICATED = (
    "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
    "authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
)
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(slots=True)
class _Call:
    path: str
    name: str  # last word of the path
    account: str
    resource: str
    request: bytes
    parsed: Any
    rules: Sequence[Rule]


class Service(grpc.GenericRpcHandler):
    """Answers every unary call of Pub/Sub, Datastore and their IAM.

    Args:
        tokens: Who calls.
        pubsub: The Pub/Sub emulator's address.
        datastore: The Datastore emulator's address, or "".
    """

    def __init__(self, tokens: Tokens, pubsub: str, datastore: str) -> None:
        self.manners, self.rules, self.tokens = Manners(), Rules(), tokens
        self.calls: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.unauthenticated = 0
        self._channels = {
            name: grpc.aio.insecure_channel(address, options=_OPTIONS)
            for name, address in (("pubsub", pubsub), ("datastore", datastore))
            if address
        }
        self._upstream: dict[str, Any] = {}
        self._retentions = limits.Retentions()
        subscriber = "/google.pubsub.v1.Subscriber/"
        self.polls = Polls(
            lambda request: self._send(subscriber + "Pull", request),
            lambda request: self._send(subscriber + "ModifyAckDeadline", request),
        )

    def reset(self) -> None:
        """Default manners, no rules, counters at zero."""
        self.manners = Manners()
        self.rules.clear()
        self.tokens.reset()
        self.calls.clear()
        self.errors.clear()
        self.unauthenticated = 0
        self.polls.strand = self.polls.staggered = False
        self.polls.reset()

    def stats(self) -> dict[str, Any]:
        """See `Front.stats`."""
        polls = self.polls
        return {
            "calls": dict(self.calls),
            "errors": dict(self.errors),
            "tokens": self.tokens.given,
            "unauthenticated": self.unauthenticated,
            "polls": polls.now,
            "polls_most": polls.most,
            "polls_by": dict(polls.by),
            "polls_most_by": dict(polls.most_by),
            "cancelled": polls.cancelled,
            "stranded": polls.stranded.total(),
            "stranded_by": dict(polls.stranded),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """See `grpc.GenericRpcHandler`."""
        path = handler_call_details.method

        async def serve(request: bytes, context: Any) -> bytes:
            name = path.rpartition("/")[2]
            self.calls[name] += 1
            try:
                return await self._answer(path, name, request, dict(context.invocation_metadata()))
            except Refused as refused:
                code, details = refused.code, refused.details
            except grpc.aio.AioRpcError as error:
                code, details = error.code().name, error.details() or ""
            self.errors[f"{name}:{code}"] += 1
            await context.abort(getattr(grpc.StatusCode, code), details)
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(serve)

    async def _answer(self, path: str, name: str, request: bytes, metadata: dict[str, str]) -> bytes:
        half = self.manners.round_trip / 2
        if half:
            await asyncio.sleep(half)
        try:
            call = self._admit(path, name, request, metadata)
            response = await self._effect(call)
        except (Refused, grpc.aio.AioRpcError):
            if half:
                await asyncio.sleep(half)
            raise
        if half:
            await self._on_its_way(call, response, half)
        return response

    async def _on_its_way(self, call: _Call, response: bytes, seconds: float) -> None:
        """The answer travels; where its client goes away meanwhile, nobody gets it."""
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            if call.name == "Pull":
                self.polls.gone(call.parsed.subscription, response)
            raise

    def _admit(self, path: str, name: str, request: bytes, metadata: dict[str, str]) -> _Call:
        try:
            account = self.tokens.check(metadata.get("authorization", "")).email
        except BadToken:
            self.unauthenticated += 1
            raise Refused("UNAUTHENTICATED", NOT_AUTHENTICATED) from None
        parsed = limits.parse(name, request)
        resource = f"{unquote(metadata.get('x-goog-request-params', ''))} {first_text(request)}"
        return _Call(path, name, account, resource, request, parsed, self.rules.of(name, account, resource))

    async def _effect(self, call: _Call) -> bytes:
        for rule in call.rules:
            if rule.delay:
                await asyncio.sleep(rule.delay)
        for rule in call.rules:
            if rule.status and not rule.drop_answer:
                raise Refused(rule.status, rule.details or "by a rule of the front")
        if call.path.startswith("/google.iam.v1."):
            response = await self._test_permissions(call)
        else:
            self._authorize(call)
            if self.manners.enforce_limits:
                limits.check(call.name, call.parsed, len(call.request), self.manners.shortest_ack_deadline)
            response = await (self._pull(call) if call.name == "Pull" else self._pass(call))
        for rule in call.rules:
            if rule.answer_delay:
                await self._on_its_way(call, response, rule.answer_delay)
            if rule.drop_answer:
                raise Refused(
                    rule.status or "UNAVAILABLE", rule.details or "the answer was lost, by a rule of the front"
                )
        return response

    def _authorize(self, call: _Call) -> None:
        for permission in permissions.of_method(call.name, call.parsed):
            if not self._may(call.account, permission, call.resource):
                raise Refused("PERMISSION_DENIED", permissions.DENIED[service_of(call.path)])

    def _may(self, account: str, permission: str, resource: str) -> bool:
        return self.tokens.may(account, permission) and not self.rules.denied(permission, account, resource)

    async def _test_permissions(self, call: _Call) -> bytes:
        question = permissions.test_permissions(call.request)
        kinds = {"topics": ("Publisher/GetTopic", "topic"), "subscriptions": ("Subscriber/GetSubscription", "")}
        parts = question.resource.split("/")
        if len(parts) != 4 or parts[2] not in kinds:
            raise Refused("INVALID_ARGUMENT", f"Invalid resource name given (name={question.resource}).")
        try:  # of what is not there nobody has a permission
            await self._send(f"/google.pubsub.v1.{kinds[parts[2]][0]}", _text(1, question.resource))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return permissions.granted([])
        return permissions.granted([p for p in question.permissions if self._may(call.account, p, call.resource)])

    async def _pull(self, call: _Call) -> bytes:
        most, empty = self.manners.short, self.manners.empty
        for rule in call.rules:
            most = most if rule.max_messages is None else rule.max_messages
            empty = empty if rule.empty is None else rule.empty
        if random.random() < empty:
            return b""
        return await self.polls.pull(call.parsed, min(most, call.parsed.max_messages))

    async def _pass(self, call: _Call) -> bytes:
        if call.name == "DeleteSubscription":
            self.polls.deleted(first_text(call.request))
        if not self.manners.enforce_limits:
            return await self._send(call.path, call.request)
        request = self._retentions.request(call.name, call.parsed, call.request)
        return self._retentions.response(call.name, await self._send(call.path, request))

    async def _send(self, path: str, request: bytes) -> bytes:
        invoke = self._upstream.get(path)
        if invoke is None:
            channel = self._channels.get(service_of(path))
            if channel is None:
                raise Refused("UNIMPLEMENTED", f"the front has nothing behind {path}")
            invoke = self._upstream[path] = channel.unary_unary(path)
        response: bytes = await invoke(request)
        return response


def service_of(path: str) -> str:
    """``pubsub`` of ``/google.pubsub.v1.Publisher/Publish``."""
    return path.split(".")[1] if path.count(".") > 1 else ""


def _text(tag: int, text: str) -> bytes:
    data = text.encode()
    length, size = bytearray(), len(data)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes((tag << 3 | 2,)) + bytes(length) + data


def first_text(request: bytes) -> str:
    """The request's first field, where that is a text with the number 1: the resource's name in Pub/Sub."""
    if not request or request[0] != 0x0A:
        return ""
    size = shift = 0
    for at in range(1, min(len(request), 6)):
        size |= (request[at] & 0x7F) << shift
        if request[at] < 0x80:
            return request[at + 1 : at + 1 + min(size, 1024)].decode(errors="replace")
        shift += 7
    return ""
