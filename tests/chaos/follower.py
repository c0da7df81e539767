"""A reader of one run, as a client is one: it comes back with its cursor, at any gateway, until it is told the end.

What it is shown it records, and thinks nothing of it: the checker does.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple, TypeAlias

import aiohttp
import msgspec

from tests.chaos.content import digest_of, read
from tests.chaos.history import (
    OUT_OF_PATIENCE,
    Connected,
    Disconnected,
    EventKind,
    Got,
    How,
    Joined,
    Left,
    ReaderKind,
    Record,
    Recorder,
    Stalled,
    now,
)

CONNECT_SECONDS = 3.0
FIRST_PAUSE_SECONDS = 0.1
LAST_PAUSE_SECONDS = 2.0
KINDS: Mapping[str, EventKind] = {
    "ping": "ping",
    "stop_reason": "stop",
    "usage_statistics": "usage",
    "error_message": "error",
}

Response: TypeAlias = AbstractAsyncContextManager[aiohttp.ClientResponse]


class Gateway(NamedTuple):
    """A gateway as readers reach it, and the name by which faults call it."""

    name: str
    url: str


class Whim(NamedTuple):
    """What a reader does once it has seen so many events: hang up for a while, read nothing for a while, or leave."""

    after: int
    what: Literal["away", "stall", "leave"]
    seconds: float = 0.0


class _Message(msgspec.Struct):
    message_type: str | None = None
    content: msgspec.Raw = msgspec.Raw(b"null")
    seq_id: int | None = None
    run_id: str | None = None
    stop_reason: str | None = None
    error_type: str | None = None


_message = msgspec.json.Decoder(_Message).decode
_value = msgspec.json.decode


class _Over(Exception):
    """There is nothing more to be read."""


class _Away(Exception):
    """The reader hangs up, and comes back after so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class Follower:
    """One reader. `opening`, if it is given, makes its first requests, until it has seen which run answers."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        recorder: Recorder,
        gateways: Sequence[Gateway],
        chance: random.Random,
        *,
        name: str,
        token: str,
        kind: ReaderKind = "letta",
        run_id: str = "",
        after: int = 0,
        background: bool = True,
        whims: Sequence[Whim] = (),
        opening: Callable[[Gateway], Response] | None = None,
        on_run: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name, self.token, self.run_id = name, token, run_id
        self.cursor = after
        self.last_chunk = 0
        """The sequence of the last chunk that was shown; where another may begin."""
        self.is_done = False
        self.hurries = asyncio.Event()
        """Set when it is to read to the end without further whims."""
        self._session, self._recorder, self._chance = session, recorder, chance
        self._gateways = gateways
        self._is_source = kind == "event_source"
        self._background = background
        self._whims = list(whims)
        self._opening, self._on_run = opening, on_run
        self._seen = 0
        self._pause = FIRST_PAUSE_SECONDS
        self._retry: float | None = None
        self._tail = b""
        self._notice = ""
        self._heard = 0.0
        """When it asked, or was told something last."""
        self._write(Joined(at=now(), reader=name, token=token, kind=kind, after=after))

    async def follow(self) -> None:
        """Read on to the end, or until there is a reason to leave."""
        try:
            while not self.is_done:
                await self._read_once(self._chance.choice(self._gateways))
                if not self.is_done:
                    await self._wait(self._chance.uniform(0.5, 1.5) * (self._retry or self._pause))
                    self._pause = min(self._pause * 2, LAST_PAUSE_SECONDS)
            if self._is_source and self._chance.random() < 0.3:
                await self._ask_once_more()
        except _Over as over:
            if not self.is_done:
                self._write(Left(at=now(), reader=self.name, why=str(over)))
        except asyncio.CancelledError:
            if not self.is_done:
                self._write(Left(at=now(), reader=self.name, why=OUT_OF_PATIENCE))
            raise

    async def _read_once(self, gateway: Gateway) -> None:
        """Make one request, and read its answer for as long as it lasts."""
        self._tail, self._notice, self._heard = b"", "", now()
        was_answered = False
        try:
            async with self._request(gateway) as response:
                was_answered = True
                if response.status != 200:
                    self._refused(gateway, response.status)
                    return
                self._write(Connected(at=now(), reader=self.name, gateway=gateway.name, after=self.cursor))
                async for data in self._pieces(response):
                    self._take(data)
            how: How = "done" if self.is_done else "clean"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            how, self._notice = "cut" if was_answered else "unreachable", self._notice or type(error).__name__
        except _Away as away:
            since = now()
            await self._wait(away.seconds)
            self._write(Stalled(at=now(), reader=self.name, since=since))
            return
        if self._is_source and not self.is_done and self._tail.startswith(b"retry: "):
            self._take_retry(self._tail)
            how = "announced"
        detail = "" if how == "done" else self._notice
        self._disconnected(gateway, how, detail)
        if not self._background and not self.is_done and was_answered:
            raise _Over("it cannot be resumed")

    async def _ask_once_more(self) -> None:
        """Do what a browser does whose page has not closed its EventSource at [DONE]: be told that there is no more."""
        gateway, self._heard = self._chance.choice(self._gateways), now()
        try:
            async with self._request(gateway) as response:
                if response.status != 200:
                    self._refused(gateway, response.status)
                elif b"data:" in (data := await response.read()):
                    self._tail = b""
                    self._take(data)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return  # It would come again, and it has what it wanted to know.

    def _request(self, gateway: Gateway) -> Response:
        if self._opening is not None and not self.run_id:
            return self._opening(gateway)
        url = f"{gateway.url}/v1/runs/{self.run_id}/stream"
        if self._is_source:
            headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
            if self.cursor:
                headers["Last-Event-ID"] = str(self.cursor)
            return self._session.get(url, headers=headers)
        body: dict[str, object] = {"starting_after": self.cursor}
        if self._chance.random() < 0.3:
            url, body["run_id"] = f"{gateway.url}/v1/conversations/default/stream", self.run_id
        return self._session.post(url, json=body)

    def _refused(self, gateway: Gateway, status: int) -> None:
        how: How = "no_content" if status == 204 else "refused"
        self._disconnected(gateway, how, str(status))
        if status < 500:
            raise _Over("expired" if status in {404, 410} else f"refused with {status}")

    def _disconnected(self, gateway: Gateway, how: How, detail: str) -> None:
        record = Disconnected(
            at=now(), reader=self.name, gateway=gateway.name, how=how, detail=detail, since=self._heard
        )
        self._write(record)

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Give the bytes as they come, when the reader's whims let it read."""
        async for data in response.content.iter_any():
            yield data
            while self._whims and self._seen >= self._whims[0].after and not self.is_done:
                await self._act(self._whims.pop(0))

    async def _act(self, whim: Whim) -> None:
        if self.hurries.is_set():
            return
        if whim.what == "leave":
            raise _Over("leaves")
        if whim.what == "away":
            raise _Away(whim.seconds)
        since = now()
        await self._wait(whim.seconds)
        self._write(Stalled(at=now(), reader=self.name, since=since))

    async def _wait(self, seconds: float) -> None:
        """Wait for so long, but not when all are told to hurry."""
        if self.hurries.is_set():
            await asyncio.sleep(min(seconds, FIRST_PAUSE_SECONDS * 3))
            return
        try:
            async with asyncio.timeout(seconds):
                await self.hurries.wait()
        except TimeoutError:
            pass

    def _take(self, data: bytes) -> None:
        """Record the events that these bytes complete."""
        self._heard = at = now()
        *blocks, self._tail = (self._tail + data).split(b"\n\n")
        got = [event for block in blocks if (event := self._event(block, at)) is not None]
        if got:
            self._pause = FIRST_PAUSE_SECONDS
            self._seen += len(got)
            self._write(*got)

    def _event(self, block: bytes, at: float) -> Got | None:
        """Read one event; what is none of the protocol's is recorded as a chunk of nobody's."""
        data, own_id, retry = b"", None, b""
        for line in block.split(b"\n"):
            name, _, value = line.partition(b": ")
            if name == b"data":
                data = value
            elif name == b"id" and self._is_source:
                own_id = int(value)
            elif name == b"retry" and self._is_source:
                retry = line
            elif line not in {b"event: error", b"event: run_error"}:
                return Got(at=at, reader=self.name)
        if retry:
            self._take_retry(retry)
        if data == b"[DONE]":
            self.is_done = True
            self.cursor = own_id or self.cursor
            return Got(at=at, reader=self.name, kind="done", seq=own_id)
        return self._record(_message(data), data, own_id, at)

    def _record(self, message: _Message, data: bytes, own_id: int | None, at: float) -> Got:
        if message.run_id and not self.run_id:
            self.run_id = message.run_id
            self._on_run(message.run_id)
        kind = KINDS.get(message.message_type or "", "chunk")
        seq = own_id if self._is_source else message.seq_id
        if kind == "error" and message.seq_id is None:
            self._notice = message.error_type or ""  # In the foreground it may be the run's own: the end tells.
        if kind == "error" and message.seq_id is None and self._background:
            return Got(at=at, reader=self.name, kind="notice", text=self._notice)
        if seq is not None:
            self.cursor = seq
        if kind == "chunk":
            self.last_chunk = seq or 0
            shown = read(_value(message.content))
            is_one = message.run_id == self.run_id and (not self._is_source or own_id == message.seq_id)
            token = shown.token if is_one else ""
            return Got(at=at, reader=self.name, seq=seq, token=token, index=shown.number, digest=shown.digest)
        text = message.stop_reason or message.error_type or ""
        digest = 0 if kind == "ping" else digest_of(data.decode())
        return Got(at=at, reader=self.name, kind=kind, seq=seq, text=text, digest=digest)

    def _take_retry(self, line: bytes) -> None:
        # Of several the last counts: one that is cut at once has nothing between the first line and the last.
        self._retry = int(line.splitlines()[-1].removeprefix(b"retry: ")) / 1000

    def _write(self, *records: Record) -> None:
        self._recorder.write(*records)


def session_of(silence_seconds: float) -> aiohttp.ClientSession:
    """Return what makes the requests of a process: a connection for each, given up when it is silent for so long."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence_seconds),
        read_bufsize=2**14,
    )
