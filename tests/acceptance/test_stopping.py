"""`runstream gateway` and `runstream broker` are told to stop: in good order, and without loss to anybody."""

import asyncio
import contextlib
import random
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from runstream.schemas import new_agent_id
from tests.support.eventsource import SourceStream, open_source, source_path
from tests.support.http import DONE, Cut, Event, fetch, open_stream
from tests.support.nats import free_ports
from tests.support.services import Service, service
from tests.support.stack import Stack, message, stack_running
from tests.support.waiting import wait_until


def create(gateway: Service, **knobs: Any) -> open_stream:
    return open_stream(gateway.base, f"/v1/agents/{new_agent_id()}/messages/stream", message(knobs))


@contextlib.asynccontextmanager
async def both(nats_url: str, window: str) -> AsyncIterator[tuple[Service, Service]]:
    """A gateway and a broker with the demo agent, which drain for that long."""
    env = {"RUNSTREAM_DRAIN_SECONDS": window}
    async with (
        service("broker", nats_url, "--agent", "demo", env=env) as broker,
        service("gateway", nats_url, env=env) as gateway,
    ):
        await asyncio.gather(broker.is_ready(), gateway.is_ready())
        try:
            yield gateway, broker
        finally:
            for left in (gateway, broker):
                # The one that the test was not about would drain, too.
                if left.process.returncode is None:
                    await left.kill()


async def test_a_gateway_cuts_its_streams_within_the_window_and_ends_with_0(nats_url: str) -> None:
    """SIGTERM: not ready at once, every stream cut by the end of the window, and nothing wrong in the log."""
    async with both(nats_url, "1") as (gateway, _), create(gateway, chunks=1000, interval_ms=50) as stream:
        await stream.take(3)
        told_at = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        with pytest.raises(Cut):
            await stream.rest()
        assert await gateway.process.wait() == 0, gateway.process.report()
        assert time.monotonic() - told_at < 5
        log = "\n".join(gateway.process.errors)
        assert "draining" in log
        assert "Traceback" not in log


async def test_a_broker_lets_its_runs_end(nats_url: str) -> None:
    """SIGTERM: the run that it executes is complete before its process ends, with 0."""
    async with both(nats_url, "60") as (gateway, broker), create(gateway, chunks=20, interval_ms=100) as stream:
        await stream.take(3)
        broker.process.send_signal(signal.SIGTERM)
        await wait_until(lambda: broker.answers("/readyz", 503))
        events = await stream.rest()
        assert events[-1] == DONE
        assert [event for event in events if event.event == "error"] == []
        assert await broker.process.wait() == 0, broker.process.report()
        assert "Traceback" not in "\n".join(broker.process.errors)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["gateway", "broker"])
async def test_a_second_signal_ends_it_at_once(nats_url: str, kind: str, second: signal.Signals) -> None:
    """Whoever does not want to wait for a drain says so again."""
    async with both(nats_url, "600") as (gateway, broker), create(gateway, chunks=1000, interval_ms=50) as stream:
        await stream.take(3)
        stopped = {"gateway": gateway, "broker": broker}[kind].process
        stopped.send_signal(signal.SIGTERM)
        await wait_until(lambda: any("draining" in line for line in stopped.errors))
        stopped.send_signal(second)
        assert await stopped.wait(2) == 128 + second


@pytest.mark.parametrize("kind", ["gateway", "broker"])
async def test_ctrl_c_does_not_drain(nats_url: str, kind: str) -> None:
    """Somebody waits at the terminal: streams are cut, and runs ended, within seconds, and the exit code is 0."""
    async with both(nats_url, "600") as (gateway, broker), create(gateway, chunks=1000, interval_ms=50) as stream:
        await stream.take(3)
        stopped = {"gateway": gateway, "broker": broker}[kind].process
        stopped.send_signal(signal.SIGINT)
        assert await stopped.wait(8) == 0, stopped.report()


# -- a rolling restart ------------------------------------------------------------------------------------------------

READERS = 150
"""Of each kind."""
RUNS = 10
WINDOW_SECONDS = 3.0
RETRY_SECONDS = 0.2


@dataclass
class Balancer:
    """What sends readers to gateways: to those that serve, one of them at random."""

    serving: list[Service] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(6))

    def choose(self) -> Service:
        return self.chance.choice(self.serving)


@dataclass
class Reader(ABC):
    """Somebody who follows a run to its end, and comes back after each cut; anything else fails it."""

    balancer: Balancer
    run_id: str
    seen: list[Event] = field(default_factory=list)
    gateways: list[str] = field(default_factory=list)

    async def follow(self) -> None:
        """Read the run to its end."""
        while not await self._read(self.balancer.choose().base):
            pass

    @abstractmethod
    async def _read(self, base: str) -> bool:
        """Read from one gateway; False if the response was cut."""

    def texts(self) -> list[int]:
        """The numbers of the chunks, as they came."""
        return [int(event.json["content"]) for event in self.seen if event.message_type == "assistant_message"]


class LettaReader(Reader):
    """Resumes with the last `seq_id`, at once."""

    async def _read(self, base: str) -> bool:
        cursor = next((event.seq_id for event in reversed(self.seen) if event.seq_id is not None), 0)
        self.gateways.append(base)
        async with open_stream(base, f"/v1/runs/{self.run_id}/stream", {"starting_after": cursor}) as stream:
            try:
                self.seen += await stream.rest()
                return True
            except Cut:
                self.seen += stream.seen
                return False


class BrowserReader(Reader):
    """Resumes with the last id, when it was told to come back."""

    async def _read(self, base: str) -> bool:
        last = next((event.id for event in reversed(self.seen) if event.id is not None), None)
        self.gateways.append(base)
        async with open_source(base, source_path(self.run_id), last_event_id=last) as stream:
            assert isinstance(stream, SourceStream)
            try:
                self.seen += await stream.rest()
                return True
            except Cut:
                self.seen += stream.seen
        assert stream.raw.rpartition(b"\n\n")[2].count(b"retry: ") == 1, "the cut was not announced"
        assert stream.retry is not None
        await asyncio.sleep(stream.retry / 1000)  # what it was told, and not a wait of the test's
        return False


async def speak(stack: Stack, run_ids: Sequence[str]) -> None:
    """Let the runs go on."""
    while True:
        for run_id in run_ids:
            stack.puppet.say(run_id)
        await asyncio.sleep(0.2)  # the pace of the runs, and not a wait


async def test_a_rolling_restart_of_two_gateways_under_300_readers(nats_url: str) -> None:
    """Each reader of both kinds is cut, comes back to the other gateway and in the end has its whole run, once."""
    env = {"RUNSTREAM_DRAIN_SECONDS": str(WINDOW_SECONDS), "RUNSTREAM_EVENT_SOURCE_RETRY_SECONDS": str(RETRY_SECONDS)}
    balancer = Balancer()
    async with contextlib.AsyncExitStack() as stack:
        runs = await stack.enter_async_context(stack_running(nats_url))
        for port in free_ports(2):
            balancer.serving.append(await stack.enter_async_context(service("gateway", nats_url, env=env, port=port)))
        await asyncio.gather(*(gateway.is_ready() for gateway in balancer.serving))
        run_ids = [(await stack.enter_async_context(runs.live(1)))[0] for _ in range(RUNS)]
        kinds = (LettaReader, BrowserReader)
        readers = [kind(balancer, run_ids[number % RUNS]) for kind in kinds for number in range(READERS)]
        reading = [asyncio.create_task(reader.follow()) for reader in readers]
        speaking = asyncio.create_task(speak(runs, run_ids))
        for gateway in [*balancer.serving]:
            await wait_until(lambda: _everybody_reads(balancer), 20)
            balancer.serving.remove(gateway)
            gateway.process.send_signal(signal.SIGTERM)
            assert await gateway.process.wait(WINDOW_SECONDS + 10) == 0, gateway.process.report()
            again = await stack.enter_async_context(service("gateway", nats_url, env=env, port=gateway.port))
            await again.is_ready()
            balancer.serving.append(again)
        await wait_until(lambda: _everybody_reads(balancer), 20)
        speaking.cancel()
        for run_id in run_ids:
            runs.puppet.finish(run_id)
        await asyncio.gather(*reading)
    for reader in readers:
        said = [event for event in reader.seen if event.message_type == "assistant_message"]
        assert reader.texts() == list(range(len(said)))
        assert len(said) == max(len(other.texts()) for other in readers if other.run_id == reader.run_id)
        assert reader.seen[-1].is_done
        assert len(reader.gateways) >= 2
        assert all(gateway != after for gateway, after in zip(reader.gateways, reader.gateways[1:], strict=False))
    assert {len(reader.gateways) for reader in readers} <= {2, 3}


async def _everybody_reads(balancer: Balancer) -> bool:
    """Whether all readers have a stream open, at whichever gateway."""
    shown = [(await fetch(gateway.base, "GET", "/metrics")).body.decode() for gateway in balancer.serving]
    counts = [
        line.split()[1] for text in shown for line in text.splitlines() if line.startswith("runstream_followers ")
    ]
    return sum(map(float, counts)) == 2 * READERS
