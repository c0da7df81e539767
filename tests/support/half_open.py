"""A TCP proxy in front of a nats-server, whose connections can be made to stay open and pass nothing any more."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from tests.support.passing import READ_BYTES, until_one_ends

BOTH = frozenset({"in", "out"})
"""Which ways can be shut: `in`, to who has connected; `out`, from there to the server."""


class _Way:
    """One direction of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._open = asyncio.Event()
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    async def pass_on(self) -> None:
        """Pass bytes on until one end is closed. While it is shut they are not even read: the kernel's buffers fill."""
        with contextlib.suppress(OSError):
            while data := await self._reader.read(READ_BYTES):
                await self._open.wait()
                self._writer.write(data)
                await self._writer.drain()


class HalfOpen:
    """Listens at `url`. Each connection is passed on to the server until it, or all, are shut."""

    def __init__(self, server: str) -> None:
        self.url = ""
        self.is_black_hole = False
        """Whether connections that are made from now on pass nothing either."""
        self.accepted = 0
        """Connections that were made so far."""
        self._server = urlsplit(server)
        self._connections: dict[asyncio.Task[None], dict[str, _Way]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def before(cls, server: str) -> AsyncIterator["HalfOpen"]:
        """A proxy before this nats-server for as long as the block lasts; what is open then is closed."""
        proxy = cls(server)
        listening = await asyncio.start_server(proxy._begin, "127.0.0.1", 0)
        proxy.url = f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        try:
            yield proxy
        finally:
            listening.close()
            for task in proxy._connections:
                task.cancel()
            await asyncio.gather(*proxy._connections, return_exceptions=True)
            await listening.wait_closed()

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    @property
    def passing(self) -> int:
        """How many connections pass bytes both ways."""
        return sum(all(way._open.is_set() for way in ways.values()) for ways in self._connections.values() if ways)

    def shut(self, ways: frozenset[str] = BOTH) -> int:
        """Let the connections there are pass nothing more, these ways, and stay open; returns how many there are."""
        connections = [connection for connection in self._connections.values() if connection]
        for connection in connections:
            for way in ways:
                connection[way].shut()
        return len(connections)

    def heal(self) -> None:
        """Let new connections pass again; those that were shut stay so."""
        self.is_black_hole = False

    def cut(self) -> None:
        """Close the connections that there are."""
        for task in self._connections:
            task.cancel()

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._pass(reader, writer), name="half-open")
        self._connections[task] = {}
        task.add_done_callback(self._connections.pop)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, onward = await asyncio.open_connection(self._server.hostname, self._server.port)
            try:
                await self._pass_both({"in": _Way(there, writer), "out": _Way(reader, onward)})
            finally:
                onward.transport.abort()
        except OSError:
            pass  # The server is not there.
        finally:
            writer.transport.abort()

    async def _pass_both(self, ways: dict[str, _Way]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = ways
        if self.is_black_hole:
            for way in ways.values():
                way.shut()
        # Either end that closes closes both: only what was shut stays half open.
        await until_one_ends(*(way.pass_on() for way in ways.values()))
