"""Cancel, with its writer dead or stopped, NATS away, and a platform behind an HTTP agent."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from tests.lifecycle.processes import Asked, Peer
from tests.lifecycle.scene import (
    Say,
    Scene,
    check_free,
    check_life,
    check_repeated,
    ending_of,
    opened,
    post,
    run_of,
)
from tests.support.http import EventStream, fetch
from tests.support.nats import NatsServer
from tests.support.outages import paused, stopped
from tests.support.upstream import Exchange, event, upstream_running
from tests.support.waiting import wait_until

ACKNOWLEDGED_SECONDS = 1.0


async def cancelled(gateway: Peer, say: Say, stream: EventStream) -> float:
    """Cancel what goes on in the conversation, which must succeed; returns how long its stream took to end."""
    since = time.monotonic()
    asking = asyncio.create_task(post(gateway, f"conversations/{say.conversation_id}/cancel"))
    await stream.rest(deadline=20)
    took = time.monotonic() - since
    reply = await asking
    run_id = stream.seen[0].json["run_id"]
    assert (reply.status, reply.json) == (200, {run_id: "cancelled"})
    assert ending_of(stream.seen) == "cancelled"
    return took


async def test_a_writer_that_is_stopped(scene: Scene) -> None:
    """A broker ends the run within a second in place of its writer, who finds itself fenced when it goes on."""
    gateway, writer = await scene.gateway(), await scene.broker()
    await scene.broker(has_agent=False)
    say = await scene.say(gateway, chunks=100_000, interval=0.01)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await stream.take(2)
        await writer.pause()
        took = await cancelled(gateway, say, stream)
        print(f"the stream had ended {took:.2f} s after the cancel")
        assert took < ACKNOWLEDGED_SECONDS
    record = await scene.record(run_id)
    writer.resume()
    await writer.logged("run_fenced")
    await wait_until(lambda: scene.journal("closed", run_id), 5, "its agent is not closed")
    await check_life(scene, run_id, stream.seen)
    assert await scene.record(run_id) == record
    await check_repeated(gateway, say, stream.seen)
    await check_free(scene, gateway, say.conversation_id)


@pytest.mark.parametrize("head_start", [0.0, 0.002, 0.01])
async def test_a_writer_that_is_killed_by_then(scene: Scene, head_start: float) -> None:
    """Killed while the wish comes in, a writer leaves a run that is ended as cancelled, by whoever was first."""
    gateway, writer = await scene.gateway(), await scene.broker()
    await scene.broker(has_agent=False)
    say = await scene.say(gateway, chunks=2, waits=True)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await stream.take(2)
        cancelling = asyncio.create_task(cancelled(gateway, say, stream))
        await asyncio.sleep(head_start)  # the point in the cancel at which its writer dies
        await writer.kill()
        await cancelling
    await scene.broker()
    await check_life(scene, run_id, stream.seen)
    await check_free(scene, gateway, say.conversation_id)


@pytest.mark.parametrize("outage", [stopped, paused])
async def test_nats_is_away(
    scene: Scene, nats_server: NatsServer, outage: Callable[[NatsServer], AbstractAsyncContextManager[None]]
) -> None:
    """A cancel that comes in an outage is carried out, or refused so that it can be repeated; and then a second is
    enough."""
    gateway, writer = await scene.gateway(), await scene.broker()
    await scene.broker(has_agent=False)
    say = await scene.say(gateway, chunks=2, waits=True)
    async with opened(gateway, say) as stream:
        run_id = await run_of(stream)
        await stream.take(2)
        async with outage(nats_server):
            asking = asyncio.create_task(post(gateway, f"conversations/{say.conversation_id}/cancel"))
            await asyncio.sleep(1.5)  # how long the outage is
        first, answered_at = await asking, time.monotonic()
        assert first.status in {200, 503}, first
        if first.status == 503:
            await wait_until(lambda: serves(scene, gateway), 20)
            assert await cancelled(gateway, say, stream) < ACKNOWLEDGED_SECONDS
        else:
            await stream.rest()
            assert time.monotonic() - answered_at < ACKNOWLEDGED_SECONDS
            assert ending_of(stream.seen) == "cancelled"
    await check_life(scene, run_id, stream.seen)
    await check_free(scene, gateway, say.conversation_id)
    assert not writer.is_dead


async def serves(scene: Scene, gateway: Peer) -> bool:
    """Whether gateway and test have NATS again."""
    return scene.core.connection.is_connected and (await fetch(gateway.url, "GET", "/readyz")).status == 200


@pytest.mark.parametrize("is_silent", [False, True])
async def test_the_platform_is_hung_up_on(scene: Scene, *, is_silent: bool) -> None:
    """A cancel closes the connection to the platform at once, in the middle of its answer or of its silence."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        for number in range(1 if is_silent else 1_000_000):
            await exchange.say(event({"message_type": "assistant_message", "content": f"{number}"}))
            await asyncio.sleep(0.01)
        await asyncio.Event().wait()

    async with upstream_running(script) as upstream:
        gateway = await scene.gateway()
        await scene.broker(upstream=upstream.url)
        say = Say(await scene.conversation(gateway), Asked())
        async with opened(gateway, say) as stream:
            await stream.take(2)
            since = time.monotonic()
            took = await cancelled(gateway, say, stream)
            async with asyncio.timeout(ACKNOWLEDGED_SECONDS):
                await upstream.exchanges[0].left.wait()
            print(f"acknowledged after {took:.3f} s, hung up after {time.monotonic() - since:.3f} s")
        assert took < ACKNOWLEDGED_SECONDS
        assert len(upstream.exchanges) == 1


async def test_a_run_that_waits_is_never_begun(scene: Scene) -> None:
    """Cancelled while there is only a dead worker, a run ends, and the next worker does not begin it."""
    gateway, writer = await scene.gateway(), await scene.broker(concurrency=1)
    await scene.broker(has_agent=False)
    busy, say = await scene.say(gateway, chunks=1, waits=True), await scene.say(gateway)
    async with opened(gateway, busy) as first, opened(gateway, say) as stream:
        await run_of(first)
        await first.take(1)  # Killed before its first chunk, it would be begun again.
        run_id = await run_of(stream)
        await writer.kill()
        assert await cancelled(gateway, say, stream) < ACKNOWLEDGED_SECONDS
        await scene.broker()
        await first.rest()
    await check_life(scene, run_id, stream.seen)
    assert not scene.journal("begun", run_id)
