"""A TCP proxy between a client and servers that are alike, which cuts connections where a test wants it."""

import asyncio
import contextlib
import random
import re
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from urllib.parse import urlsplit

from tests.support.passing import READ_BYTES, until_one_ends

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER, on, for no time: closing sends a reset."""

_REQUEST = re.compile(rb"^((?:GET|POST|OPTIONS) \S+) HTTP/1\.[01]\r$", re.MULTILINE)
_LAST_EVENT_ID = re.compile(rb"^Last-Event-ID: (.*)\r$", re.MULTILINE | re.IGNORECASE)


def random_cuts(seed: int, count: int = 20) -> list[int]:
    """After how many bytes of an answer to cut it: within its headers, within an event, after dozens of them."""
    chance = random.Random(seed)
    return [chance.randint(1, chance.choice([300, 1500, 12_000])) for _ in range(count)]


class Passage:
    """One connection of a client's, and what it has asked so far."""

    def __init__(self) -> None:
        self.asked = bytearray()
        self.server: str | None = None
        """The base URL of the server that has it."""


class Proxy:
    """Listens at `url`, and takes each connection to the first of `servers` that is there; else it resets it.

    While there are `cuts`, each connection is reset after as many bytes of its answers as the next of them says,
    wherever in an event that is. While there are `swallowed`, each connection's requests are passed on, and none of
    its answers is, not even their headers.
    """

    def __init__(self, servers: Sequence[str], url: str) -> None:
        self.servers = servers
        self.url = url
        self.cuts: deque[int] = deque()
        self.swallowed = 0
        self.passages: list[Passage] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, servers: Sequence[str], cuts: Iterable[int] = ()) -> AsyncIterator["Proxy"]:
        """A proxy for as long as the block lasts; what is open then is reset."""

        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(proxy._pass(reader, writer), name="passage")
            proxy._tasks.add(task)
            task.add_done_callback(proxy._tasks.discard)

        listening = await asyncio.start_server(begin, "127.0.0.1", 0)
        proxy = cls(servers, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        proxy.cuts.extend(cuts)
        try:
            yield proxy
        finally:
            listening.close()
            await proxy._reset()
            await listening.wait_closed()

    @contextlib.asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """No network while the block lasts: what is open is reset, and so is whatever is opened."""
        servers, self.servers = self.servers, []
        await self._reset()
        try:
            yield
        finally:
            self.servers = servers

    async def _reset(self) -> None:
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def requests(self) -> list[str]:
        """All that was asked so far, as `GET /path`; by clients that have no bodies."""
        return [line.decode() for passage in self.passages for line in _REQUEST.findall(bytes(passage.asked))]

    @property
    def last_event_ids(self) -> list[str]:
        """Every `Last-Event-ID` that was sent so far."""
        return [value.decode() for passage in self.passages for value in _LAST_EVENT_ID.findall(bytes(passage.asked))]

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passage = Passage()
        self.passages.append(passage)
        try:
            upstream = await self._connected(passage)
            if upstream is None:
                return
            try:
                await self._exchange(passage, (reader, writer), upstream)
            finally:
                upstream[1].transport.abort()
        finally:
            if not writer.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()

    async def _connected(self, passage: Passage) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for server in self.servers:
            parts = urlsplit(server)
            with contextlib.suppress(OSError):
                connected = await asyncio.open_connection(parts.hostname, parts.port)
                passage.server = server
                return connected
        return None

    async def _exchange(
        self,
        passage: Passage,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        """Pass bytes both ways until one of the two has enough, or it is time to cut."""

        is_swallowed = self.swallowed > 0
        self.swallowed -= is_swallowed

        async def up() -> None:
            while data := await client[0].read(READ_BYTES):
                passage.asked += data
                server[1].write(data)
                await server[1].drain()

        async def down() -> None:
            room: int | None = None
            while data := await server[0].read(READ_BYTES):
                if is_swallowed:
                    continue
                if room is None and self.cuts:
                    room = self.cuts.popleft()
                if room is not None:
                    data, room = data[:room], room - len(data)
                client[1].write(data)
                await client[1].drain()
                if room is not None and room <= 0:
                    return
            # The server has ended it, and the client hears of that in the same way.
            client[1].close()
            await client[1].wait_closed()

        await until_one_ends(up(), down())
