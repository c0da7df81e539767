"""Connections that mean ill, on both ports: too slow, too long, too many, and never read. All of it is bounded."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Self
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from aiohttp import web

from runstream.broker.http import serving
from runstream.broker.http_server import MOST_HEAD_BYTES, MOST_HEADS_AHEAD, Doors
from runstream.broker.limits.settings import LimitSettings
from runstream.broker.operations import Operation
from runstream.schemas import new_agent_id
from tests.support.http import Connection, Reply, fetch
from tests.support.ingest import content_of, writing
from tests.support.nats import NatsServer
from tests.support.processes import python, running, runstream
from tests.support.stack import Stack, listener, stack_running, url_of
from tests.support.waiting import wait_until

HEAD_SECONDS, IDLE_SECONDS, BODY_SECONDS = 0.4, 0.8, 0.6
SLACK_SECONDS = 4.0
"""The machine may have other things to do."""
FEW = 100
STARTED_WITH_FEW = f"""
import os, resource, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
assert most > 1000, "this machine allows no process more than a few descriptors"
resource.setrlimit(resource.RLIMIT_NOFILE, ({FEW}, most))
os.execv(sys.argv[1], sys.argv[1:])
"""
PORTS = pytest.mark.parametrize("port", ["gateway", "broker"])


@pytest_asyncio.fixture(scope="module")
async def stack(nats_server: NatsServer) -> AsyncIterator[Stack]:
    """A runstream that is in a hurry."""
    limits = {"head_seconds": HEAD_SECONDS, "idle_seconds": IDLE_SECONDS}
    async with stack_running(
        nats_server.url,
        limits=limits,
        gateway={"body_seconds": BODY_SECONDS, "keepalive_seconds": 60},
        broker={"body_seconds": BODY_SECONDS},
    ) as running:
        yield running


def base_of(stack: Stack, port: str) -> str:
    return stack.base if port == "gateway" else stack.broker_base


def check(reply: Reply, status: int, detail: str) -> None:
    """A refusal has the form that all have, and is the last of its connection."""
    assert (reply.status, reply.detail) == (status, detail)
    assert reply.headers["content-type"].startswith("application/json")
    assert reply.headers["connection"] == "close"
    assert reply.headers["server"] == "runstream"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["x-request-id"]


class Taken:
    """How long the block took."""

    seconds = 0.0

    def __enter__(self) -> Self:
        self._began = asyncio.get_running_loop().time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = asyncio.get_running_loop().time() - self._began


# -- heads ------------------------------------------------------------------------------------------------------------


@PORTS
async def test_who_says_nothing_is_let_go(stack: Stack, port: str) -> None:
    """A connection without a request is closed in its time, and nothing is said on it."""
    async with Connection.open(base_of(stack, port)) as connection:
        with Taken() as taken:
            assert await connection.ends()
    assert HEAD_SECONDS * 0.9 < taken.seconds < HEAD_SECONDS + SLACK_SECONDS


@PORTS
async def test_a_head_that_comes_byte_by_byte(stack: Stack, port: str) -> None:
    """All of it has to be there in time: that something comes does not help."""
    endless = b"GET /livez HTTP/1.1\r\nHost: test\r\nX-Slow: " + b"x" * 1000
    async with Connection.open(base_of(stack, port)) as connection:
        with Taken() as taken:
            reply = await connection.trickle(endless)
        check(reply, 408, f"The head of the request was not there after {HEAD_SECONDS} s.")
        assert await connection.ends()
    assert HEAD_SECONDS * 0.9 < taken.seconds < HEAD_SECONDS + SLACK_SECONDS


@PORTS
async def test_a_further_head_has_its_own_time(stack: Stack, port: str) -> None:
    """It counts from its first byte; a connection on which nothing more comes is kept for longer, and not for ever."""
    async with Connection.open(base_of(stack, port)) as half, Connection.open(base_of(stack, port)) as idle:
        for connection in (half, idle):
            await connection.send("GET", "/livez")
            assert (await connection.reply()).status == 200
        await half.send_raw(b"GET /livez HT")
        with Taken() as taken:
            check(await half.reply(), 408, f"The head of the request was not there after {HEAD_SECONDS} s.")
            until_half = asyncio.get_running_loop().time()
            assert await idle.ends()
        assert asyncio.get_running_loop().time() >= until_half
    assert IDLE_SECONDS * 0.9 < taken.seconds < IDLE_SECONDS + SLACK_SECONDS


@PORTS
async def test_a_hundred_half_heads_are_in_nobodys_way(stack: Stack, port: str) -> None:
    """Others are served meanwhile, and all of the hundred are let go."""
    base = base_of(stack, port)
    async with contextlib.AsyncExitStack() as opened:
        slow: list[Connection] = []
        for _ in range(100):
            slow.append(await opened.enter_async_context(Connection.open(base)))
            await slow[-1].send_raw(b"POST /v1/runs")  # At once: to who has said nothing, nothing is said.
        assert (await fetch(base, "GET", "/livez")).status == 200
        replies = await asyncio.gather(*(connection.reply() for connection in slow))
        assert {reply.status for reply in replies} == {408}
        assert all(await asyncio.gather(*(connection.ends() for connection in slow)))


LONG = (
    "The head of the request is too long: 128 headers, 8190 bytes each and in the request line, "
    f"{MOST_HEAD_BYTES} in all."
)
FLOODS = {
    "many headers": b"GET /livez HTTP/1.1\r\nHost: test\r\n" + b"a: b\r\n" * 129 + b"\r\n",
    "a long header": b"GET /livez HTTP/1.1\r\nHost: test\r\nA: " + b"x" * 8200 + b"\r\n\r\n",
    "a long name": b"GET /livez HTTP/1.1\r\nHost: test\r\n" + b"x" * 8200 + b": a\r\n\r\n",
    "a long path": b"GET /" + b"x" * 8200 + b" HTTP/1.1\r\nHost: test\r\n\r\n",
    "no end": b"GET /livez HTTP/1.1\r\nHost: test\r\n" + (b"A: " + b"x" * 1000 + b"\r\n") * 66,
}


@PORTS
@pytest.mark.parametrize("flood", FLOODS)
async def test_a_head_that_is_too_long(stack: Stack, port: str, flood: str) -> None:
    """It is refused as soon as that is seen, in the form of every other refusal."""
    async with Connection.open(base_of(stack, port)) as connection:
        await connection.send_raw(FLOODS[flood])
        check(await connection.reply(), 431, LONG)
        assert await connection.ends()


@PORTS
@pytest.mark.parametrize("rubbish", [b"no HTTP\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"])
async def test_what_is_no_http(stack: Stack, port: str, rubbish: bytes) -> None:
    """It is answered as everything else is, and shows nothing of what reads it."""
    async with Connection.open(base_of(stack, port)) as connection:
        await connection.send_raw(rubbish)
        check(await connection.reply(), 400, "What was sent is no HTTP request.")


# -- bodies -----------------------------------------------------------------------------------------------------------


@PORTS
async def test_a_body_that_comes_byte_by_byte(stack: Stack, port: str) -> None:
    """It has its time as a whole: that something comes does not help."""
    path = f"/v1/agents/{new_agent_id()}/messages/stream" if port == "gateway" else "/ingest/v1/runs"
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n"
    async with Connection.open(base_of(stack, port)) as connection:
        await connection.send_raw(head.encode())
        with Taken() as taken:
            reply = await connection.trickle(b" " * 1000)
    check(reply, 408, f"The request body was not there after {BODY_SECONDS} s.")
    assert BODY_SECONDS * 0.9 < taken.seconds < BODY_SECONDS + SLACK_SECONDS


async def test_an_upload_that_is_silent_is_no_slow_head(stack: Stack) -> None:
    """Between its lines a writer may take longer than any head, or any idle connection."""
    async with writing(stack.broker_base) as writer, writer.upload() as upload:
        await upload.say(0)
        with Taken() as taken:
            async with Connection.open(stack.broker_base) as idle:
                await idle.send("GET", "/livez")
                await idle.reply()
                assert await idle.ends()  # As long as that the upload is silent.
        assert taken.seconds > HEAD_SECONDS
        await upload.say(1)
        assert (await upload.finish()).json["stored"] == 2
        await writer.end()
        assert len(await content_of(stack, writer.run_id)) == 2


async def test_a_stream_that_is_silent_is_no_idle_connection(stack: Stack) -> None:
    """What follows a run whose agent thinks goes on, and its end is the run's."""
    async with stack.live(1) as (run_id, stream):
        async with Connection.open(stack.base) as idle:
            await idle.send("GET", "/livez")
            await idle.reply()
            assert await idle.ends()
        stack.puppet.say(run_id)
        await stream.take(1)
        stack.puppet.finish(run_id)
        assert (await stream.rest())[-1].is_done


# -- what comes while something is answered ---------------------------------------------------------------------------


class Slow:
    """A server whose answers wait until they are `let_go`, and one connection to it."""

    def __init__(self, connection: Connection, refused: list[str]) -> None:
        self.connection = connection
        self.refused = refused
        self.is_asked = asyncio.Event()
        self.let_go = asyncio.Event()
        self.ahead: list[int] = []
        """How many requests were read ahead of each answer."""

    async def answer(self, request: web.Request) -> web.Response:
        """Take the body, and wait."""
        self.is_asked.set()
        size = len(await request.read())
        await self.let_go.wait()
        self.ahead.append(len(request.protocol._messages))
        return web.json_response(size)


@contextlib.asynccontextmanager
async def slow_server() -> AsyncIterator[Slow]:
    refused: list[str] = []
    doors = Doors(LimitSettings(), refused.append)
    with contextlib.closing(listener()) as bound:
        async with Connection.open(url_of(bound)) as connection:
            slow = Slow(connection, refused)
            operations = [
                Operation(method=method, path="/slow", handler=slow.answer, answers={}, scope="open")
                for method in ("GET", "POST")
            ]
            async with serving(operations, bound, doors):
                yield slow


async def test_a_head_without_end_behind_a_request() -> None:
    """It is no more than any other head: what was asked for is answered, and the connection ends."""
    async with slow_server() as slow:
        await slow.connection.send("GET", "/slow")
        await slow.is_asked.wait()
        await slow.connection.send_raw(FLOODS["no end"])
        await wait_until(lambda: bool(slow.refused))
        await slow.connection.send_raw(FLOODS["no end"])
        slow.let_go.set()
        reply = await slow.connection.reply()
        assert (reply.status, reply.json) == (200, 0)
        assert await slow.connection.ends()
    assert slow.refused == ["head_bytes"]


async def test_a_body_is_no_head() -> None:
    """It may be longer, also behind another request, and more than is read at once."""
    size = 14 * MOST_HEAD_BYTES
    head = f"POST /slow HTTP/1.1\r\nHost: test\r\nContent-Length: {size}\r\n\r\n".encode()
    async with slow_server() as slow:
        slow.let_go.set()
        for _ in range(2):
            await slow.connection.send_raw(head + b"x" * size)
        assert [(await slow.connection.reply()).json for _ in range(2)] == [size, size]
    assert not slow.refused


async def test_few_requests_are_read_ahead() -> None:
    """As many as are sent at once are answered, in order; those that wait for it are not in memory."""
    many = 40
    head = b"GET /slow HTTP/1.1\r\nHost: test\r\n" + (b"A: " + b"x" * 4000 + b"\r\n") * 8 + b"\r\n"
    async with slow_server() as slow:
        sending = asyncio.create_task(slow.connection.send_raw(head * many))
        slow.let_go.set()
        replies = [(await slow.connection.reply()).status for _ in range(many)]
        await sending
    assert replies == [200] * many
    assert max(slow.ahead) == MOST_HEADS_AHEAD
    assert not slow.refused


# -- answers that nobody reads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [30_000, 150_000])
async def test_an_answer_that_is_not_read(size: int) -> None:
    """It is given up, in a time that grows with it, whether the connection is then closed or kept."""

    async def large(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * size)

    refused: list[str] = []
    settings = LimitSettings(head_seconds=5, idle_seconds=0.2, answer_seconds=0.3)
    doors = Doors(settings, refused.append)
    with contextlib.closing(listener()) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # Else the kernel would take all of it.
        serves = Operation(method="GET", path="/large", handler=large, answers={}, scope="open")
        async with serving([serves], bound, doors), Connection.open(url_of(bound), receive_buffer=4096) as connection:
            await connection.send("GET", "/large")
            await wait_until(lambda: doors.open == 1)
            await wait_until(lambda: doors.open == 0, 10, "the reader that takes nothing is still there")
    assert refused == (["answer_seconds"] if size > 2**16 else [])


# -- too many ---------------------------------------------------------------------------------------------------------


@PORTS
async def test_a_full_port_closes_at_once(nats_url: str, port: str) -> None:
    """Those that are there stay, and what they have open goes on; when one leaves there is room for one."""
    async with contextlib.AsyncExitStack() as opened:
        stack = await opened.enter_async_context(stack_running(nats_url, limits={"max_connections": 3}))
        stream = await opened.enter_async_context(stack.create({"chunks": 60, "interval_ms": 50}))
        await stream.take(2)
        base = base_of(stack, port)
        kept = 2 if port == "gateway" else 3  # The stream has one of the gateway's.
        there = [await opened.enter_async_context(Connection.open(base)) for _ in range(kept)]
        for connection in there:
            await connection.send("GET", "/livez")
            assert (await connection.reply()).status == 200
        async with Connection.open(base) as refused:
            assert await refused.ends()
        there[0].writer.transport.abort()

        async def is_let_in() -> bool:
            with contextlib.suppress(Exception):
                return (await fetch(base, "GET", "/livez")).status == 200
            return False

        await wait_until(is_let_in, 5, "nobody is let in though one has left")
        await there[1].send("GET", "/metrics")
        metrics = (await there[1].reply()).body.decode()
        assert 'runstream_limits_reached_total{limit="connections"} 0.0' not in metrics
        assert (await stream.rest())[-1].is_done


async def test_few_descriptors_at_first_are_no_limit(nats_url: str) -> None:
    """A gateway that was started with 100 of them, and may have more, serves more connections than that."""
    given = runstream("gateway", "--nats-url", nats_url, "--port", "0")
    async with (
        running(*python("-c", STARTED_WITH_FEW, *given)) as gateway,
        contextlib.AsyncExitStack() as opened,
    ):
        base = (await gateway.wait_for_line("^ready ")).split()[1]
        there = [await opened.enter_async_context(Connection.open(base)) for _ in range(FEW + 20)]
        for connection in there:
            await connection.send("GET", "/livez")
        assert [(await connection.reply()).status for connection in there] == [200] * len(there)


async def test_an_address_has_its_own_number_of_connections(nats_url: str) -> None:
    """One that has all of its is closed at once, another is let in; a connection that was refused counts for nobody."""
    async with (
        stack_running(nats_url, limits={"address_connections": 2}) as stack,
        Connection.open(stack.base) as one,
        Connection.open(stack.base),
    ):
        for _ in range(3):
            async with Connection.open(stack.base) as refused:
                assert await refused.ends()
        parts = urlsplit(stack.base)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, local_addr=("127.0.0.2", 0))
        writer.write(b"GET /livez HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        await one.send("GET", "/livez")
        assert (await one.reply()).status == 200
