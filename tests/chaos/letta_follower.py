"""A reader that is a program with Letta's own client: what the client makes of the wire is what is recorded."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any, Self

import httpx
from letta_client import APIConnectionError, APIStatusError, AsyncLetta

from tests.chaos.content import read
from tests.chaos.follower import FIRST_PAUSE_SECONDS, KINDS, LAST_PAUSE_SECONDS, Gateway
from tests.chaos.history import OUT_OF_PATIENCE, Connected, Disconnected, Got, How, Joined, Left, Recorder, now
from tests.support.letta import as_json


class Clients:
    """One client for each gateway, which never repeats a request by itself: to come back is the reader's to do."""

    def __init__(self, gateways: Sequence[Gateway], silence_seconds: float) -> None:
        self._clients = [
            (each, AsyncLetta(base_url=each.url, api_key="none", max_retries=0, timeout=silence_seconds))
            for each in gateways
        ]

    def choose(self, chance: random.Random) -> tuple[Gateway, AsyncLetta]:
        """Give any of them."""
        return chance.choice(self._clients)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for _, client in self._clients:
            await client.close()


class LettaFollower:
    """One reader of one run, from its beginning, until the client's loop ends."""

    def __init__(
        self, clients: Clients, recorder: Recorder, chance: random.Random, *, name: str, token: str, run_id: str
    ) -> None:
        self.name, self.token, self.run_id = name, token, run_id
        self.last_chunk = 0
        self.is_done = False
        self.hurries = asyncio.Event()
        self._clients, self._recorder, self._chance = clients, recorder, chance
        self._cursor = 0
        self._heard = 0.0
        self._recorder.write(Joined(at=now(), reader=name, token=token, kind="letta_client"))

    async def follow(self) -> None:
        """Read on to the end, or until there is a reason to leave."""
        try:
            await self._keep_reading()
        except asyncio.CancelledError:
            if not self.is_done:
                self._recorder.write(Left(at=now(), reader=self.name, why=OUT_OF_PATIENCE))
            raise

    async def _keep_reading(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self.is_done:
            gateway, client = self._clients.choose(self._chance)
            before, self._heard = self._cursor, now()
            how, detail = await self._read_once(gateway, client)
            record = Disconnected(
                at=now(), reader=self.name, gateway=gateway.name, how=how, detail=detail, since=self._heard
            )
            self._recorder.write(record)
            if how == "refused" and int(detail) < 500:
                self._recorder.write(Left(at=now(), reader=self.name, why=f"refused with {detail}"))
                return
            if not self.is_done:
                pause = FIRST_PAUSE_SECONDS if self._cursor > before else min(pause * 2, LAST_PAUSE_SECONDS)
                await asyncio.sleep(self._chance.uniform(0.5, 1.5) * pause)

    async def _read_once(self, gateway: Gateway, client: AsyncLetta) -> tuple[How, str]:
        """Make one request, and tell how it ended."""
        is_connected = False
        try:
            stream = await client.runs.messages.stream(self.run_id, starting_after=self._cursor)
            is_connected = True
            self._recorder.write(Connected(at=now(), reader=self.name, gateway=gateway.name, after=self._cursor))
            async with stream:
                async for message in stream:
                    self._recorder.write(self._got(as_json(message)))
        except APIStatusError as error:
            if not is_connected:
                return "refused", str(error.status_code)
            return self._told(error.body if isinstance(error.body, dict) else {})
        except (httpx.TransportError, APIConnectionError, OSError) as error:
            return "cut" if is_connected else "unreachable", type(error).__name__
        self._end()
        return "done", ""

    def _told(self, error: Mapping[str, Any]) -> tuple[How, str]:
        """Take an error event, of the run, which has ended with it, or of the response."""
        type_, seq = str(error.get("error_type", "")), error.get("seq_id")
        if seq is None:
            self._recorder.write(Got(at=now(), reader=self.name, kind="notice", text=type_))
            return "cut", type_
        self._recorder.write(Got(at=now(), reader=self.name, kind="error", seq=seq, text=type_))
        self._end()
        return "done", ""

    def _end(self) -> None:
        """Note that the loop has ended: the client does not show [DONE] itself."""
        self.is_done = True
        self._recorder.write(Got(at=now(), reader=self.name, kind="done"))

    def _got(self, message: Mapping[str, Any]) -> Got:
        seq = message.get("seq_id")
        self._heard = now()
        self._cursor = seq or self._cursor
        kind = KINDS.get(message["message_type"], "chunk")
        if kind == "chunk":
            self.last_chunk = seq or 0
            shown = read(message.get("content"))
            token = shown.token if message.get("run_id") == self.run_id else ""
            return Got(at=now(), reader=self.name, seq=seq, token=token, index=shown.number, digest=shown.digest)
        return Got(at=now(), reader=self.name, kind=kind, seq=seq, text=message.get("stop_reason") or "")
