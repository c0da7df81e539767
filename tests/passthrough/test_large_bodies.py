"""Bodies of any size go through both ways, no faster than they are taken, and in little memory."""

import asyncio
import hashlib
import resource
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import ClientSession, web
from structlog.testing import capture_logs

from tests.support.http import Connection
from tests.support.platform import in_front_of, scripted, serving
from tests.support.upstream import Exchange
from tests.support.waiting import wait_until

MIB = 2**20
SIZE = 100 * MIB
PIECE = bytes(range(256)) * 256
MAY_GROW = 48 * MIB
"""Kernel buffers are not counted; buffers of the three parties in this process are, and what they leave behind."""


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def pieces() -> AsyncIterator[bytes]:
    for _ in range(SIZE // len(PIECE)):
        yield PIECE


async def digest_of(parts: AsyncIterator[bytes]) -> tuple[int, str]:
    size, digest = 0, hashlib.blake2b()
    async for part in parts:
        size += len(part)
        digest.update(part)
    return size, digest.hexdigest()


async def expected() -> tuple[int, str]:
    return await digest_of(pieces())


def stalls(read: Callable[[], int]) -> Callable[[], bool]:
    """A condition: for as long as a hundred megabytes would have taken, nothing moves."""
    seen: list[int] = []

    def unchanged() -> bool:
        seen.append(read())
        return seen[-1] > 0 and seen[-20:] == [seen[-1]] * 20

    return unchanged


async def echo(request: web.Request) -> web.StreamResponse:
    """Answer with the body while it comes."""
    response = web.StreamResponse()
    await response.prepare(request)
    async for part in request.content.iter_any():
        await response.write(part)
    return response


@pytest.mark.parametrize("says_length", [True, False])
async def test_100_megabytes_there_and_back(nats_url: str, says_length: bool) -> None:
    """Every byte comes back while more are being sent, and this process hardly grows."""
    headers = {"Content-Length": str(SIZE)} if says_length else {}
    async with (
        serving([web.put("/v1/files/{name}", echo)]) as url,
        in_front_of(nats_url, url) as stack,
        ClientSession() as client,
    ):
        before = peak()
        async with client.put(f"{stack.base}/v1/files/large", data=pieces(), headers=headers) as answer:
            found = await digest_of(answer.content.iter_any())
        assert found == await expected()
        assert peak() - before < MAY_GROW


async def test_an_answer_waits_for_its_client(nats_url: str) -> None:
    """A client that does not read stops the platform; when it reads on, it gets everything."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        for _ in range(SIZE // MIB):
            await exchange.say(b"x" * MIB)
        await exchange.end()

    async with scripted(nats_url, script) as (upstream, stack):
        opening = Connection.open(stack.base, receive_buffer=4096)
        async with opening as connection:
            await connection.send("GET", "/v1/files/large")
            await connection.head()
            exchange = upstream.exchanges[0]
            await wait_until(stalls(lambda: exchange.sent_bytes))
            last = exchange.sent_bytes
            assert last < SIZE / 2
            received = 0
            while part := await connection.reader.read(MIB):
                received += len(part)
                if received > last:
                    break
            await wait_until(lambda: exchange.sent_bytes > last)


async def test_a_body_waits_for_the_platform(nats_url: str) -> None:
    """A platform that does not read stops the client."""
    sent = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal sent
        async for piece in pieces():
            yield piece
            sent += len(piece)

    go = asyncio.Event()

    async def reads_late(request: web.Request) -> web.StreamResponse:
        await go.wait()
        size, _ = await digest_of(request.content.iter_any())
        return web.json_response(size)

    async with (
        serving([web.put("/v1/files/{name}", reads_late)]) as url,
        in_front_of(nats_url, url) as stack,
        ClientSession() as client,
    ):
        putting = asyncio.create_task(client.put(f"{stack.base}/v1/files/large", data=counted()), name="putting")
        await wait_until(stalls(lambda: sent))
        last = sent
        assert 0 < last < SIZE / 2
        go.set()
        async with asyncio.timeout(20), await putting as answer:
            assert await answer.json() == SIZE


async def test_a_client_that_never_reads_is_given_up(nats_url: str) -> None:
    """Its answer is reset after the write deadline, the platform hears of it, and is not said to have broken it off."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        while not exchange.left.is_set():
            await exchange.say(b"x" * MIB)

    async with (
        scripted(nats_url, script, gateway={"write_deadline_seconds": 0.3}) as (upstream, stack),
        Connection.open(stack.base, receive_buffer=4096) as connection,
    ):
        with capture_logs() as logs:
            await connection.send("GET", "/v1/files/large")
            await connection.head()
            await wait_until(upstream.exchanges[0].left.is_set, 10)
        said = [line["event"] for line in logs if line["event"].startswith("upstream_")]
        assert said == ["upstream_answer_not_taken"]


async def test_a_refusal_need_not_wait_for_the_body(nats_url: str) -> None:
    """What the platform says before it has read everything is said at once."""

    async def refuses(_: web.Request) -> web.StreamResponse:
        return web.json_response({"detail": "too large"}, status=413)

    async with (
        serving([web.put("/v1/files/{name}", refuses)]) as url,
        in_front_of(nats_url, url) as stack,
        Connection.open(stack.base) as connection,
    ):
        await connection.send("PUT", "/v1/files/large", headers={"Content-Length": str(SIZE)})
        await connection.send_raw(b"the beginning")
        status, headers = await connection.head()
        assert (status, headers["content-type"]) == (413, "application/json; charset=utf-8")
