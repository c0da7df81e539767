"""What is passed on to the platform in somebody's name ends when what admitted them does, in either direction."""

import secrets
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from runstream.broker.auth.revoking import revoke
from tests.support.auth import Client, Issuer
from tests.support.http import Connection, Cut
from tests.support.platform import scripted
from tests.support.stack import Stack
from tests.support.standstill import check_timely, measured_again
from tests.support.upstream import Exchange, Upstream, event
from tests.support.waiting import wait_until

SECONDS = 2.0
WHY = 'error_description="The credential has expired, or was revoked."'


async def endless(exchange: Exchange) -> None:
    """Say something, and then nothing, without end; nothing at all below `silent`."""
    if not exchange.asked.target.endswith("/silent"):
        await exchange.head()
        await exchange.say(event({"n": 1}))
    await exchange.left.wait()


@pytest_asyncio.fixture(scope="module")
async def front(
    nats_url: str, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Upstream, Stack]]:
    """A runstream that takes the issuer's tokens, in front of a platform that ends nothing by itself."""
    settings = issuer.settings(tmp_path_factory.mktemp("auth"), None, auth_leeway_seconds=0)
    async with scripted(nats_url, endless, admission=settings) as made:
        yield made


async def counted(stack: Stack, outcome: str) -> float:
    """How many requests have ended so."""
    shown = (await stack.fetch("GET", "/metrics")).body.decode()
    name = f'runstream_passed_on_total{{outcome="{outcome}"}} '
    (line,) = [line for line in shown.splitlines() if line.startswith(name)]
    return float(line.removeprefix(name))


@pytest.mark.parametrize("ending", ["expires", "is revoked"])
@measured_again
async def test_an_answer_is_broken_off(front: tuple[Upstream, Stack], issuer: Issuer, ending: str) -> None:
    """It does not seem to be whole, and the platform is left."""
    platform, stack = front
    before = await counted(stack, "broken")
    jti = secrets.token_hex(8)
    expiry = {"exp": int(time.time()) + 2} if ending == "expires" else {"jti": jti}
    client = Client(stack.base, issuer.token(**expiry))
    async with Connection.open(stack.base) as connection:
        await connection.send("GET", "/v1/tools/stream", headers=client.headers)
        assert (await connection.head())[0] == 200
        assert await connection.chunk() == event({"n": 1})
        begun = time.monotonic()
        if ending == "is revoked":
            await revoke(stack.jetstream, jti)
        with pytest.raises(Cut):
            await connection.chunk()
        took = time.monotonic() - begun
        check_timely(took < SECONDS, took)
    await wait_until(platform.exchanges[-1].left.is_set, 5, "the platform is not left")
    assert (await client.fetch("GET", "/v1/tools/")).status == 401
    assert await counted(stack, "broken") == before + 1


async def test_a_question_is_answered_401(front: tuple[Upstream, Stack], issuer: Issuer) -> None:
    """While the platform has not answered; it is left."""
    platform, stack = front
    before, asked = await counted(stack, "failed"), len(platform.asked)
    async with Connection.open(stack.base) as connection:
        client = Client(stack.base, issuer.token(jti="of a question"))
        await connection.send("GET", "/v1/tools/silent", headers=client.headers)
        await wait_until(lambda: len(platform.asked) > asked, 5, "the platform is not asked")
        await revoke(stack.jetstream, "of a question")
        begun = time.monotonic()
        reply = await connection.reply()
        assert time.monotonic() - begun < SECONDS
    assert (reply.status, reply.json) == (401, {"detail": "Unauthorized"})
    assert WHY in reply.headers["www-authenticate"]
    await wait_until(platform.exchanges[-1].left.is_set, 5, "the platform is not left")
    assert await counted(stack, "failed") == before + 1


async def test_an_upload_is_answered_401(front: tuple[Upstream, Stack], issuer: Issuer) -> None:
    """While its body is still sent, and the platform never gets a part of it for the whole."""
    platform, stack = front
    asked = len(platform.asked)
    client = Client(stack.base, issuer.token(exp=int(time.time()) + 2))
    async with Connection.open(stack.base) as connection:
        headers = {**client.headers, "Transfer-Encoding": "chunked"}
        await connection.send("POST", "/v1/sources/upload", headers=headers)
        await connection.send_raw(b"4\r\npart\r\n")
        reply = await connection.reply()
    assert (reply.status, reply.json) == (401, {"detail": "Unauthorized"})
    assert WHY in reply.headers["www-authenticate"]
    assert len(platform.asked) == asked
