"""A run that is written over HTTP, through broken connections and brokers that change: nothing lost, nothing twice.

The invariant: *a chunk is forgotten once a broker said that it is stored, and not before.* Each request says how many
chunks are stored before its own, so that it may be sent again whatever came of it.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from runstream.gateway.commands.client import AWAY, PASSING, refusal
from runstream.gateway.commands.exits import CommandError, Failed, Unreachable, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runstream.gateway.commands.client import Client

__all__ = ["MOST_BYTES", "MOST_CHUNKS", "SIGNS_PER_LEASE", "BadChunk", "TooLong", "Writing"]

SIGNS_PER_LEASE: Final = 4
MOST_CHUNKS: Final = 500
MOST_BYTES: Final = 2**20
"""What is to go into one request, give or take a chunk."""

FIRST_DELAY_SECONDS: Final = 0.1
LONGEST_DELAY_SECONDS: Final = 1.0
TRIES_PER_LEASE: Final = 8
STORE_FULL: Final = 507
NOT_KNOWN: Final = 401
NOT_FOUND: Final = 404
CONFLICT: Final = 409
TOO_LARGE: Final = 413
INVALID: Final = 422
ANSWER_SECONDS: Final = 30.0
"""How long an answer may take: three times as long as a broker waits for NATS."""


class BadChunk(Usage):
    """A chunk that no broker will store: its place among those that were sent with it is `item`."""

    def __init__(self, message: str, *, item: int) -> None:
        super().__init__(message)
        self.item = item


class TooLong(Failed):
    """The run has as many chunks as a run may have: it is to be ended."""


class Writing:
    """One run of the ingest API, and how many of its chunks are stored. Calls raise `CommandError`."""

    def __init__(self, client: Client, *, patience_seconds: float) -> None:
        self.run_id = ""
        self.index = 0
        """How many chunks are stored, as a broker said last."""
        self.lease_seconds = 10.0
        self.patience_seconds = patience_seconds
        self._client = client

    async def open(self, agent_id: str | None, conversation_id: str | None, otid: str | None) -> None:
        """Open a run, or find the one that this very request opened before."""
        body = {
            "agent_id": agent_id or f"agent-{uuid4()}",
            "conversation_id": conversation_id,
            # With an otid the opening may be sent again when its answer is lost.
            "otids": [otid or f"publish-{uuid4()}"],
        }
        status, answer = await self._sent("/ingest/v1/runs", body)
        if status == CONFLICT and answer.get("error_type") == "conflict" and answer.get("is_repeated"):
            self.run_id = self._told(answer, "run_id", str)
        elif status == NOT_FOUND and answer.get("error_type") in {None, "not_found"}:
            url, option = self._client.url, self._client.option
            raise Usage(f"{url} takes no runs: {option} is a broker's, and no gateway's or anybody else's.")
        else:
            self._check(status, answer)
            self.run_id = self._told(answer, "run_id", str)
        await self.keep_alive()

    async def keep_alive(self) -> None:
        """Give a sign of life."""
        status, answer = await self._sent(self._path("lease"), None)
        self._check(status, answer)
        self.lease_seconds = float(self._told(answer, "lease_seconds", int | float))

    async def append(self, chunks: Sequence[bytes]) -> int:
        """Store chunks after those that are stored; returns how many of them are. Raises `BadChunk`, `TooLong`."""
        status, answer = await self._sent(self._path("chunks"), b"[" + b",".join(chunks) + b"]")
        error_type = answer.get("error_type")
        if error_type in {"body_too_large", "run_too_long"} and len(chunks) > 1:
            return await self.append(chunks[: len(chunks) // 2])
        if error_type == "run_too_long":
            raise TooLong("A run may have no more chunks than this one has: it was ended with what is stored.")
        if status in {TOO_LARGE, INVALID}:
            item = int(answer.get("item", 0))
            # Which it is of a request is not which it is of stdin.
            raise BadChunk(str(answer.get("detail")).removeprefix(f"Item {item} of the array: "), item=item)
        self._check(status, answer)
        before, self.index = self.index, self._told(answer, "index", int)
        return self.index - before

    async def end(self, stop_reason: str, usage: dict[str, Any] | None) -> dict[str, Any]:
        """End the run; returns what it came to."""
        body = {"stop_reason": stop_reason, "usage": usage}
        return self._check(*await self._sent(self._path("end"), body))

    async def fail(self, error_type: str, message: str | None, detail: str | None) -> dict[str, Any]:
        """End the run with an error; returns what it came to."""
        body = {"error_type": error_type, "message": message, "detail": detail}
        return self._check(*await self._sent(self._path("fail"), body))

    def _told(self, answer: dict[str, Any], name: str, kind: Any) -> Any:
        """Return what a success's answer says. Raises `Failed` for who is no broker, and answers anything so."""
        value = answer.get(name)
        if not isinstance(value, kind):
            url, option = self._client.url, self._client.option
            raise Failed(f"{url} answers as no broker does: is {option} a broker's?")
        return value

    def _path(self, what: str) -> str:
        return f"/ingest/v1/runs/{self.run_id}/{what}"

    def _check(self, status: int, answer: dict[str, Any]) -> dict[str, Any]:
        """Return a success's answer. Raises what a refusal stands for."""
        if status < 300:  # noqa: PLR2004  # redirects are none here
            return answer
        if status == CONFLICT:
            detail, run_id = str(answer.get("detail")), str(answer.get("run_id") or "")
            whose = "" if run_id in detail else f"{run_id}: "  # Else nobody could ask what became of it.
            raise Failed(f"{whose}{detail} ({answer.get('error_type')})")
        raise refusal(status, json.dumps(answer), self._client.url)

    async def _sent(self, path: str, body: object) -> tuple[int, dict[str, Any]]:
        """Send a request, and again for as long as what becomes of it will pass. Raises `Unreachable`, `Failed`."""
        deadline = time.monotonic() + self.patience_seconds
        delay = FIRST_DELAY_SECONDS
        while True:
            try:
                status, answer = await self._sent_once(path, body)
                if not _will_pass(status, answer):
                    return status, answer
                failure: CommandError = self._passing(status, answer)
            except AWAY as error:
                failure = self._client.away(error)
            if time.monotonic() + delay > deadline:
                raise failure
            await asyncio.sleep(delay)
            # Not as long as the run would be taken for lost.
            delay = min(2 * delay, LONGEST_DELAY_SECONDS, self.lease_seconds / TRIES_PER_LEASE)

    async def _sent_once(self, path: str, body: object) -> tuple[int, dict[str, Any]]:
        headers = {"Expected-Index": str(self.index)} if path.endswith(("/chunks", "/end", "/fail")) else {}
        async with self._client.answer("POST", path, body=body, headers=headers, silence=ANSWER_SECONDS) as answer:
            text = await answer.text(errors="replace")
            if answer.status == NOT_KNOWN:
                raise refusal(answer.status, text, self._client.url, answer.headers)
            try:
                said = json.loads(text)
            except ValueError:
                said = None
            return answer.status, said if isinstance(said, dict) else {"detail": text}

    def _passing(self, status: int, answer: dict[str, Any]) -> CommandError:
        if status in {STORE_FULL, CONFLICT}:
            return Failed(str(answer.get("detail")))
        return Unreachable(f"{self._client.url} does not serve now: {answer.get('detail')} ({status})")


def _will_pass(status: int, answer: dict[str, Any]) -> bool:
    # `fenced`: the same request, whose answer was lost, is still being carried out.
    return status in PASSING or status == STORE_FULL or answer.get("error_type") == "fenced"
