"""A junction gives each connection to the line of whoever made it, and nobody's to none."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import uvloop

from tests.chaos.proxy import BOTH, HOST, Junction, Line, Way, reset
from tests.chaos.sockets import caller_of
from tests.support.nats import connected, free_ports
from tests.support.waiting import wait_until


@contextlib.asynccontextmanager
async def echoing(port: int) -> AsyncIterator[None]:
    """A target that says what it hears."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, HOST, port)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def junction_of(name: str | None, lines: dict[str, tuple[Line, Way]]) -> AsyncIterator[int]:
    """A junction before such a target to which everybody comes by that name; its port."""
    at, port = free_ports(2)
    async with echoing(at), Junction(port, (HOST, at), lines, lambda _: name).running():
        yield port


async def test_a_connection_is_on_the_line_of_who_made_it() -> None:
    """And on no other."""
    one, other = Line("a->c"), Line("b->c")
    async with junction_of("b", {"a": (one, Way.UP), "b": (other, Way.UP)}) as port:
        async with connected(HOST, port) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            assert (len(one.passages), len(other.passages)) == (0, 1)
        await wait_until(lambda: not other.passages)
    assert (one.counts.passed_bytes, other.counts.passed_bytes) == (0, 10)


async def test_a_direction_is_the_lines_and_not_the_connections() -> None:
    """What the second of a line says goes down, where he has connected, and where the first has."""
    line = Line("c->b")
    async with junction_of("b", {"b": (line, Way.DOWN)}) as port, connected(HOST, port) as (reader, writer):
        with line.in_weather(held=frozenset([Way.UP])):
            writer.write(b"hello")
            await wait_until(lambda: line.counts.held_bytes == 5)
            assert line.counts.passed_bytes == 5  # it was heard, and the answer is held up
        assert await reader.readexactly(5) == b"hello"


def test_what_is_held_up_for_who_has_gone_is_dropped() -> None:
    """His reset is held up behind what he said, and so is what comes for him: they are let go at once."""
    # The driver's loop fails where asyncio's own writes to somebody who has gone.
    uvloop.run(_gone_while_held_up())


async def _gone_while_held_up() -> None:
    line = Line("a->c")
    async with junction_of("a", {"a": (line, Way.UP)}) as port:
        async with connected(HOST, port) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            with line.in_weather(held=BOTH):
                writer.write(b"hello")
                await wait_until(lambda: line.counts.held_bytes == 5)
                (passage,) = line.passages
                far = passage.there.sink
                assert far is not None
                reset(far)
                await wait_until(lambda: is_freed(far))
        await wait_until(lambda: not line.passages)


def is_freed(transport: asyncio.Transport) -> bool:
    """Whether uvloop has closed it, which it does a turn after it has said that it will."""
    return "closed=True" in repr(transport)


async def test_who_is_nobody_is_reset() -> None:
    """A process that has ended meanwhile, or a stranger."""
    for name in (None, "x"):
        line = Line("a->c")
        async with junction_of(name, {"a": (line, Way.UP)}) as port, connected(HOST, port) as (reader, writer):
            with contextlib.suppress(OSError):
                writer.write(b"hello")
                assert await reader.read() == b""
        assert line.counts.accepted == 0


async def test_a_junction_that_is_left_leaves_nothing() -> None:
    """What is open then is reset, whatever weather it is."""
    line = Line("a->c")
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(junction_of("a", {"a": (line, Way.UP)}))
        reader, writer = await asyncio.open_connection(HOST, port)
        await wait_until(lambda: line.passages)
        line.weather = line.weather.__class__(held=frozenset(Way))
    assert not line.passages
    with contextlib.suppress(OSError):
        assert await reader.read() == b""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_the_kernel_knows_whose_a_connection_is() -> None:
    """Of those that are asked about: this process made it, and its parent did not."""
    (at,) = free_ports(1)
    async with echoing(at), connected(HOST, at) as (_, writer):
        port = writer.get_extra_info("sockname")[1]
        others: dict[str, int | None] = {"parent": os.getppid(), "away": None}
        assert caller_of(port, at, {**others, "own": os.getpid()}) == "own"
        assert caller_of(port, at, others) is None
        assert caller_of(1, at, {"own": os.getpid()}) is None
