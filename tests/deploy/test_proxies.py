"""Streams pass through each proxy as they are: at once, cut when they are cut, and left when their reader leaves."""

import asyncio
import contextlib
import functools
import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import pytest_asyncio

from runstream.schemas import new_agent_id
from tests.deploy.proxies import KINDS, proxy
from tests.support.eventsource import EventSource, source_path
from tests.support.nats import free_ports
from tests.support.services import Service, service
from tests.support.waiting import wait_until

SETTINGS = {"RUNSTREAM_DRAIN_SECONDS": "1", "RUNSTREAM_LEASE_SECONDS": "60"}
"""A gateway that stops is soon gone; a run is not lost because its writer waits for a proxy."""
SECONDS = 20


class Scene(NamedTuple):
    """A proxy in front of two gateways, a broker, and a client of either."""

    base: str
    gateways: tuple[Service, Service]
    broker: Service
    client: httpx.AsyncClient

    async def opened(self) -> str:
        """A run that says what the test says."""
        url = f"{self.broker.base}/ingest/v1/runs"
        answer = await self.client.post(url, json={"agent_id": new_agent_id()})
        return str(answer.raise_for_status().json()["run_id"])

    async def say(self, run_id: str, number: int, *, size: int = 0) -> None:
        """Store the run's chunk with that number."""
        chunk = {"id": "message-1", "message_type": "assistant_message", "content": f"{number} ".ljust(size, ".")}
        url = f"{self.broker.base}/ingest/v1/runs/{run_id}/chunks"
        (await self.client.post(url, json=chunk, headers={"Expected-Index": str(number)})).raise_for_status()

    async def finish(self, run_id: str) -> None:
        url = f"{self.broker.base}/ingest/v1/runs/{run_id}/end"
        (await self.client.post(url, json={"stop_reason": "end_turn"})).raise_for_status()

    @contextlib.asynccontextmanager
    async def following(self, run_id: str, after: int = 0) -> AsyncIterator[AsyncIterator[Any]]:
        """The events of a run, as a client gets them through the proxy; None for `[DONE]`."""
        url = f"{self.base}/v1/runs/{run_id}/stream"
        async with self.client.stream("POST", url, json={"starting_after": after}) as answer:
            answer.raise_for_status()
            yield events(answer)

    async def read(self, run_id: str, after: int = 0) -> list[Any]:
        """All events of a run. A proxy may need a moment to see that a gateway has gone: until then it refuses."""
        found: list[Any] = []

        async def came_back() -> bool:
            with contextlib.suppress(httpx.HTTPStatusError):
                async with self.following(run_id, after) as stream:
                    found.extend([event async for event in stream])
                return True
            return False

        await wait_until(came_back, SECONDS, "nobody is sent to the other gateway")
        return found

    async def holder(self) -> Service:
        """The gateway that has a stream."""
        (found,) = [each for each in self.gateways if await followers(each) > 0]
        return found


async def events(answer: httpx.Response) -> AsyncIterator[Any]:
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield None if data == "[DONE]" else json.loads(data)


async def followers(gateway: Service) -> float:
    """How many streams a gateway has open, by its own account."""
    (value,) = re.findall(r"^runstream_followers (\S+)$", (await gateway.get("/metrics")).body.decode(), re.MULTILINE)
    return float(value)


async def said(stream: AsyncIterator[Any]) -> Any:
    """The next thing that a run says, pings aside."""
    while True:
        event = await anext(stream)
        if event is None or event["message_type"] != "ping":
            return event


@pytest_asyncio.fixture(params=KINDS)
async def scene(request: pytest.FixtureRequest, nats_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    """Everything up, and the proxy sure of it."""
    first, second = free_ports(2)
    async with (
        service("broker", nats_url, env=SETTINGS) as broker,
        service("gateway", nats_url, env=SETTINGS, port=first) as one,
        service("gateway", nats_url, env=SETTINGS, port=second) as another,
        proxy(request.param, tmp_path, (first, second)) as (base, process),
        httpx.AsyncClient(timeout=SECONDS, trust_env=False) as client,
    ):
        for each in (broker, one, another):
            await each.is_ready()
        await wait_until(lambda: is_up(client, base) if process.returncode is None else True, SECONDS, process.report())
        assert process.returncode is None, process.report()
        yield Scene(base, (one, another), broker, client)


async def is_up(client: httpx.AsyncClient, base: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return (await client.get(f"{base}/readyz")).status_code == 200
    return False


async def test_a_stream_is_cut_and_resumed(scene: Scene) -> None:
    """Each chunk is there before the next is said. The gateway stops: the client is not told that the run has ended,
    comes back to the same address with its cursor, and has the whole run, each chunk once."""
    run_id = await scene.opened()
    seen: list[Any] = []
    async with scene.following(run_id) as stream:
        for number in range(3):
            await scene.say(run_id, number)
            seen.append(await said(stream))
        stopped = await scene.holder()
        stopped.process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx.RemoteProtocolError):
            await said(stream)
    assert await stopped.process.wait() == 0
    for number in range(3, 6):
        await scene.say(run_id, number)
    await scene.finish(run_id)

    rest = await scene.read(run_id, seen[-1]["seq_id"])
    assert rest[-1] is None
    whole = await scene.read(run_id)
    assert [event for event in whole if event and event["message_type"] == "assistant_message"] == [
        event for event in seen + rest if event and event["message_type"] == "assistant_message"
    ]
    assert [event["content"] for event in whole if event and "content" in event] == [f"{n} " for n in range(6)]


async def test_who_leaves_is_gone(scene: Scene) -> None:
    """A client that hangs up is noticed by the gateway behind: its stream does not stay open for nobody."""
    run_id = await scene.opened()
    async with scene.following(run_id) as stream:
        await scene.say(run_id, 0)
        await said(stream)
        gateway = await scene.holder()

    async def is_empty() -> bool:
        return await followers(gateway) == 0

    # Nothing is said meanwhile: what is written to nobody would tell every proxy.
    await wait_until(is_empty, SECONDS, "the stream is still open")
    await scene.finish(run_id)


async def test_an_event_source_comes_back_by_itself(scene: Scene) -> None:
    """A page that reads through the proxy has the whole run, though its gateway stops, and is told to stop itself."""
    run_id = await scene.opened()
    source = EventSource(f"{scene.base}{source_path(run_id)}")
    task = asyncio.create_task(source.run())
    for number in range(3):
        await scene.say(run_id, number)
    await wait_until(lambda: len(contents(source)) == 3, SECONDS)
    stopped = await scene.holder()
    stopped.process.send_signal(signal.SIGTERM)
    assert await stopped.process.wait() == 0
    await scene.say(run_id, 3)
    await scene.finish(run_id)
    async with asyncio.timeout(SECONDS):
        await task
    assert (set(source.statuses[:-1]), source.statuses[-1]) == ({200}, 204)
    assert contents(source) == [f"{number} " for number in range(4)]
    assert source.messages[-1].data == "[DONE]"


def contents(source: EventSource) -> list[str]:
    return [
        parsed["content"]
        for message in source.messages
        if message.data != "[DONE]" and "content" in (parsed := json.loads(message.data))
    ]


async def test_what_is_large_gets_through(scene: Scene) -> None:
    """A chunk of almost a megabyte, and a request of that size, are no matter for the proxy."""
    run_id = await scene.opened()
    await scene.say(run_id, 0, size=900_000)
    async with scene.following(run_id) as stream:
        assert len((await said(stream))["content"]) == 900_000
    url = f"{scene.base}/v1/agents/{new_agent_id()}/messages/stream"
    refused = await scene.client.post(url, json={"input": "x" * 900_000})
    assert (refused.status_code, refused.json()["detail"]) == (503, "No agent is configured.")
    await scene.finish(run_id)


@pytest.mark.long
async def test_silence_is_waited_for(nats_url: str, tmp_path: Path) -> None:
    """A whole answer may be silent for longer than the minute that proxies give by default, and Envoy's 15 seconds."""
    asked = {"input": json.dumps({"silence_ms": 65_000, "chunks": 1})}
    first, second = free_ports(2)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        client = await enter(httpx.AsyncClient(timeout=100, trust_env=False))
        services = [await enter(service("broker", nats_url, "--agent", "demo", env=SETTINGS))]
        services += [await enter(service("gateway", nats_url, port=port)) for port in (first, second)]
        for each in services:
            await each.is_ready()
        bases = {}
        for name in KINDS:
            (tmp_path / name).mkdir()
            bases[name], _ = await enter(proxy(name, tmp_path / name, (first, second)))
        for base in bases.values():
            await wait_until(functools.partial(is_up, client, base), SECONDS)
        agents = f"/v1/agents/{new_agent_id()}"
        answers = await asyncio.gather(
            *(client.post(f"{base}{agents}/messages", json=asked) for base in bases.values()),
            *(client.post(f"{base}{agents}/messages/stream", json=asked) for base in bases.values()),
        )
    assert [answer.status_code for answer in answers] == [200] * 2 * len(KINDS)
    for streamed in answers[len(KINDS) :]:
        assert streamed.text.endswith("data: [DONE]\n\n")


class Peer:
    """What answers in a gateway's place and keeps its connections; one that `dies` ends each at what comes second."""

    def __init__(self, *, dies: bool) -> None:
        self.asked = self.died = 0
        self._dies = dies

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        before = 0
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = re.search(r"content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                if " /readyz " not in head:
                    self.asked += 1
                    if self._dies and before:
                        self.died += 1
                        break
                    before += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                await writer.drain()
        writer.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_that_a_gateway_has_died_over(tmp_path: Path, kind: str, method: str) -> None:
    """What only reads is asked again, and stops no EventSource; what may have begun a run is never sent twice."""
    dying, other = Peer(dies=True), Peer(dies=False)
    first, second = free_ports(2)
    asked, failed = 0, 0
    async with (
        await asyncio.start_server(dying.serve, "127.0.0.1", first),
        await asyncio.start_server(other.serve, "127.0.0.1", second),
        proxy(kind, tmp_path, (first, second)) as (base, _),
        httpx.AsyncClient(timeout=SECONDS, trust_env=False) as client,
    ):
        await wait_until(lambda: is_up(client, base), SECONDS)

        async def has_died() -> bool:
            nonlocal asked, failed
            asked += 1
            try:
                answer = await client.request(method, f"{base}/v1/runs", content=b"" if method == "GET" else b"{}")
                failed += answer.status_code != 200
            except httpx.RemoteProtocolError:
                failed += 1
            return dying.died > 0

        await wait_until(has_died, SECONDS, "nobody has died over a request")
    seen = dying.asked + other.asked
    assert (failed, seen) == ((0, asked + 1) if method == "GET" else (1, asked))
