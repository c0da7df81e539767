"""A run's whole answer as one JSON body, once it has ended; and its failure as a status.

A stream says what became of its run after its headers are out; here that is the status. Whatever it is, a run exists by
then, and `run_id` names it: a request that is sent again would start another, or, with otids, be answered by the same.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec
from aiohttp import ClientConnectionResetError, web

from runstream.broker.errors import BrokerError, RunStuck, Unavailable
from runstream.gateway.errors import NOT_AGAIN, SHOULD_RETRY, ApiError, TryLater
from runstream.gateway.paging import page_of
from runstream.gateway.transcripts import in_turns
from runstream.schemas import (
    ERROR_TYPES,
    INTERNAL_ERROR,
    WAITING_FOR_APPROVAL,
    StopReason,
    UsageStatistics,
    splice_seq_id,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from runstream.broker.index import Index
    from runstream.gateway.awaiting import EndWaiter
    from runstream.gateway.settings import GatewaySettings
    from runstream.gateway.transcripts import Transcripts
    from runstream.schemas import ListRunMessagesRequest, Merged, RunRecord

__all__ = ["Answers", "PendingApproval", "RunFailed"]

STATUS_OF: Final[Mapping[str, int]] = {
    "llm_rate_limit": HTTPStatus.TOO_MANY_REQUESTS,
    "llm_authentication": HTTPStatus.UNAUTHORIZED,
    "llm_timeout": HTTPStatus.GATEWAY_TIMEOUT,
}
"""The reference's; a run that failed in any other way is a 500."""

PIECE_BYTES = 64 * 2**10
"""What is handed to a socket at one time: what it has taken shows that somebody reads."""

Made: TypeAlias = bytearray
"""JSON, as it is sent."""

_encode = msgspec.json.Encoder().encode


class _Full(Exception):
    """As many answers wait for their readers as may."""


class Failure(msgspec.Struct):
    """The error that a run has ended with."""

    type: str
    message: str
    detail: str | None


class FailedRunRefusal(msgspec.Struct):
    """Which run, and what it ended with."""

    detail: str
    error: Failure
    run_id: str


class Pending(msgspec.Struct):
    """What is waited for: the message that asked for approval, null if it is gone."""

    code: Literal["PENDING_APPROVAL"]
    message: str
    pending_request_id: str | None


class PendingRefusal(msgspec.Struct):
    """What is waited for, and the run that was refused."""

    detail: Pending
    run_id: str


class RunFailed(ApiError):
    """The run has ended with an error."""

    statuses = (*STATUS_OF.values(), HTTPStatus.INTERNAL_SERVER_ERROR)
    shapes = (FailedRunRefusal,)
    sends = (SHOULD_RETRY,)

    def __init__(self, record: RunRecord) -> None:
        error = record.error or {}
        kind = str(error.get("error_type", INTERNAL_ERROR))
        text = str(error.get("message", ERROR_TYPES[INTERNAL_ERROR].message))
        told = {"type": kind, "message": text, "detail": error.get("detail")}
        super().__init__(text, extra={"error": told, "run_id": record.id}, headers=NOT_AGAIN)
        self.status = STATUS_OF.get(kind, HTTPStatus.INTERNAL_SERVER_ERROR)


class PendingApproval(ApiError):
    """The agent waits for approval, and this message is none."""

    status = 409
    shapes = (PendingRefusal,)
    sends = (SHOULD_RETRY,)

    def __init__(self, record: RunRecord, pending_request_id: str | None) -> None:
        super().__init__(WAITING_FOR_APPROVAL, headers=NOT_AGAIN)
        self._pending_request_id = pending_request_id
        self._run_id = record.id

    @property
    def body(self) -> dict[str, Any]:
        """The reference's form, and the run that was refused."""
        told = {"code": "PENDING_APPROVAL", "message": self.detail, "pending_request_id": self._pending_request_id}
        return {"detail": told, "run_id": self._run_id}


class Answers:
    """Answers requests with what their runs have said, when they have ended."""

    def __init__(self, index: Index, waiter: EndWaiter, transcripts: Transcripts, settings: GatewaySettings) -> None:
        self.held_bytes = 0
        """Of bodies that are made, and that their readers do not have yet."""
        self._index = index
        self._waiter = waiter
        self._transcripts = transcripts
        self._settings = settings

    def leave(self) -> None:
        """Answer whoever waits at once: this gateway stops, and with it perhaps their broker."""
        self._waiter.leave()

    async def answer(self, request: web.Request, record: RunRecord) -> web.StreamResponse:
        """Wait for a run's end, and answer with all that it said. A client that leaves does not end the run.

        Raises `RunFailed`, `PendingApproval`, `TooLong`, `TryLater` with the run's id, `CursorExpired`.
        """
        try:
            ended = await self._waiter.end_of(record)
            if ended is None:
                raise TryLater(
                    f"Run {record.id} had not ended when this gateway stopped. Do not send the message again: ask for "
                    f"/v1/runs/{record.id}/messages.",
                    run_id=record.id,
                )
            if ended.status == "failed":
                raise await self._failure(ended)
            async with self._body(ended, partial(_letta_response, ended)) as body:
                return await self._send(request, body)
        except _Full as error:
            detail = (
                f"Run {record.id} has ended, but this gateway holds as many answers as it may. Do not send the message "
                f"again: ask for /v1/runs/{record.id}/messages."
            )
            raise TryLater(detail, run_id=record.id) from error
        except RunStuck as error:
            detail = (
                f"Run {record.id} cannot go on: the store is full. It does once an operator has made room. Do not send "
                f"the message again: ask for /v1/runs/{record.id}/messages."
            )
            raise TryLater(detail, run_id=record.id) from error
        except Unavailable as error:
            detail = (
                f"Run {record.id} needs nobody to wait for it, but the store is not reachable at the moment. Do not "
                f"send the message again: ask for /v1/runs/{record.id}/messages."
            )
            raise TryLater(detail, run_id=record.id) from error

    async def messages(
        self, request: web.Request, record: RunRecord, wanted: ListRunMessagesRequest
    ) -> web.StreamResponse:
        """Answer with a page of what a run has said. Raises `TooLong`, `TryLater`, `NotFound`, `CursorExpired`."""

        async def page(said: Sequence[Merged]) -> Made:
            return await _list_of(page_of(said, wanted))

        try:
            async with self._body(record, page) as body:
                return await self._send(request, body)
        except _Full as error:
            raise TryLater("This gateway holds as many answers as it may. Try again.") from error

    @asynccontextmanager
    async def _body(
        self, record: RunRecord, make: Callable[[Sequence[Merged]], Awaitable[Made]]
    ) -> AsyncIterator[Made]:
        """Give a body made of what a run has said, which counts as held for as long as the block lasts.

        Raises `_Full` before anything is read, so that no more than what is made at one time is beyond the bound.
        """
        async with self._transcripts.turn:
            if self.held_bytes >= self._settings.held_answer_bytes:
                raise _Full
            body = await make(await self._transcripts.of(record))
            self.held_bytes += len(body)
        try:
            yield body
        finally:
            self.held_bytes -= len(body)

    async def _failure(self, ended: RunRecord) -> ApiError:
        """Make the refusal of a run that failed."""
        error = ended.error or {}
        if error.get("error_type") == INTERNAL_ERROR and error.get("message") == WAITING_FOR_APPROVAL:
            return PendingApproval(ended, await self._pending_request(ended))
        return RunFailed(ended)

    async def _pending_request(self, refused: RunRecord) -> str | None:
        """Return the id of the message that asks for approval where a run was refused; None if it is gone."""
        waiting = await self._index.waiting_for_approval(refused.tenant, refused.scope)
        stored = None if waiting is None else await self._index.run(refused.tenant, waiting)
        if stored is None:
            return None
        try:
            async with self._transcripts.turn:
                said = await self._transcripts.of(stored.value)
                return next((message.id for message in reversed(said) if _asks_for_approval(message)), None)
        except Unavailable:
            raise
        except (ApiError, BrokerError):
            return None  # Retention has removed it, or it is too long to be read for this.

    async def _send(self, request: web.Request, body: Made) -> web.StreamResponse:
        """Send a body of JSON, however long.

        Who takes nothing of it for as long as a write may wait is cut off, and so is who takes it too slowly: the whole
        of it is held until then.
        """
        settings = self._settings
        whole_seconds = settings.write_deadline_seconds + len(body) / settings.answer_bytes_per_second
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(body)
        pieces = memoryview(body)
        try:
            async with asyncio.timeout(whole_seconds):
                await response.prepare(request)
                for begin in range(0, len(body), PIECE_BYTES):
                    async with asyncio.timeout(settings.write_deadline_seconds):
                        await response.write(pieces[begin : begin + PIECE_BYTES])
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        except ClientConnectionResetError:
            pass  # The client has left.
        return response


async def _list_of(messages: Sequence[Merged], before: bytes = b"") -> Made:
    """Make a list of messages, at the end of what is before it. Grown, and not joined: that would be one copy more."""
    body = bytearray(before + b"[")
    async for message in in_turns(messages):
        if not body.endswith(b"["):
            body += b","
        body += splice_seq_id(message.body, None)
    body += b"]"
    return body


async def _letta_response(ended: RunRecord, messages: Sequence[Merged]) -> Made:
    """Make the reference's `LettaResponse`. A message of many events has no `seq_id` of its own: it is null."""
    body = await _list_of(messages, b'{"messages":')
    stop = _encode(StopReason(stop_reason=ended.stop_reason or ""))
    usage = _encode(ended.usage or UsageStatistics())
    body += b',"stop_reason":%b,"usage":%b}' % (stop, usage)
    return body


class _Seen(msgspec.Struct):
    message_type: msgspec.Raw = msgspec.Raw(b"null")


_seen_in = msgspec.json.Decoder(_Seen).decode


def _asks_for_approval(message: Merged) -> bool:
    # Not decoded: whatever else stands there need not be a value that Python has.
    try:
        return bytes(_seen_in(message.body).message_type) == b'"approval_request_message"'
    except RecursionError:  # It is nested too deep to be looked into, and stands as it came.
        return False
