"""Brokers, gateways and a platform's writers in processes of their own: forked from one that has imported everything,
as there are many."""

import asyncio
import contextlib
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import msgspec

from runstream.broker.agents import Agent
from runstream.broker.agents.http import http_agent
from runstream.broker.agents.http_platform import Platform
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.runs import Runs
from runstream.broker.service import Broker
from runstream.broker.settings import BrokerSettings
from runstream.broker.watchdog import Watchdog
from runstream.gateway.app import Gateway
from runstream.gateway.settings import GatewaySettings
from runstream.schemas import AssistantMessage, Chunk, RunRequest, StopReason, UsageStatistics, last_user_text
from tests.lifecycle.deadly import WRITE, Deadly
from tests.support.core import SETTINGS
from tests.support.processes import is_stopped
from tests.support.stack import listener, url_of
from tests.support.waiting import wait_until

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


class Asked(msgspec.Struct):
    """What a run asks of the agent, as its input in JSON: so many chunks, so far apart, then its end or silence."""

    chunks: int = 3
    interval: float = 0.0
    silence: float = 0.0
    """Before the first of them."""
    waits: bool = False


class Options(msgspec.Struct, frozen=True):
    """What a broker, gateway or writer is to be like."""

    nats_url: str
    directory: str
    lease_seconds: float = 1.0
    has_agent: bool = True
    is_deaf_to_leases: bool = False
    """Its watchdog hears of no renewal: what is republished is at most once."""
    concurrency: int = 1000
    upstream: str = ""
    """The platform that its agent asks, in place of the one below."""
    agent_id: str = ""
    conversation_id: str = ""
    """Whose run a writer writes, and where."""
    dies_at: int = 0
    moment: str = ""

    def settings(self) -> BrokerSettings:
        own = {"lease_seconds": self.lease_seconds, "worker_concurrency": self.concurrency}
        return BrokerSettings(nats_url=self.nats_url, **{**SETTINGS, **own})

    def journal(self) -> Path:
        return Path(self.directory) / "journal"


class Spoken(msgspec.Struct, frozen=True):
    """One line of the journal that all agents of a test share."""

    at: float
    """On the clock that all processes of a machine share."""
    pid: int
    run_id: str
    what: str


def read_journal(directory: Path) -> list[Spoken]:
    """All that the agents of a test have noted."""
    path = directory / "journal"
    return [msgspec.json.decode(line, type=Spoken) for line in path.read_bytes().splitlines()] if path.exists() else []


def journalling(path: Path) -> Agent:
    """An agent that notes when it begins and when it is closed, and signs each chunk with its process and execution."""
    executions = 0

    def note(run_id: str, what: str) -> None:
        with path.open("ab", buffering=0) as journal:
            journal.write(msgspec.json.encode(Spoken(time.monotonic(), os.getpid(), run_id, what)) + b"\n")

    async def agent(request: RunRequest) -> AsyncGenerator[Chunk, None]:
        nonlocal executions
        executions += 1
        signature = f"{os.getpid()}-{executions}"
        asked = msgspec.json.decode(last_user_text(request.body) or "{}", type=Asked)
        note(request.run_id, f"begun {signature}")
        try:
            await asyncio.sleep(asked.silence)
            for number in range(asked.chunks):
                yield AssistantMessage(content=f"{signature}:{number}")
                await asyncio.sleep(asked.interval)
            if asked.waits:
                await asyncio.Event().wait()
            yield StopReason(stop_reason="end_turn")
            yield UsageStatistics(total_tokens=7)
        finally:
            note(request.run_id, f"closed {signature}")

    return agent


class Peer:
    """A forked process, and what it has said so far."""

    def __init__(self, process: ForkServerProcess, output: Path) -> None:
        self._process = process
        self._output = output
        self.url = ""
        """Where its HTTP port is."""

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def lines(self) -> list[str]:
        """What it has said, line by line; one that it is still at is not among them."""
        said = self._output.read_text(errors="replace") if self._output.exists() else ""
        return said.rpartition("\n")[0].splitlines()

    def writes(self) -> list[str]:
        """The subjects it has written to, or was about to when it died."""
        return [line.split(maxsplit=2)[2] for line in self.lines() if line.startswith(f"{WRITE} ")]

    async def ready(self) -> None:
        """Wait until it serves."""

        def found() -> str:
            assert self._process.exitcode is None, f"it ended: {self.lines()[-20:]}"
            return next((line for line in self.lines() if line.startswith("ready ")), "")

        self.url = (await wait_until(found, 20, f"not ready: {self._output}")).split()[1]

    @property
    def is_dead(self) -> bool:
        return self._process.exitcode is not None

    async def kill(self) -> float:
        """End it by SIGKILL; returns when that was."""
        since = time.monotonic()
        os.kill(self.pid, signal.SIGKILL)
        await self.killed()
        return since

    async def killed(self) -> None:
        """Wait until a SIGKILL has ended it."""
        await wait_until(lambda: self.is_dead, 20, "it still runs")
        assert self._process.exitcode == -signal.SIGKILL, self.lines()[-20:]

    async def pause(self) -> None:
        """Stop it where it stands."""
        os.kill(self.pid, signal.SIGSTOP)
        await wait_until(lambda: is_stopped(self.pid), message="it does not stop")

    def resume(self) -> float:
        """Let it go on; returns when that was."""
        os.kill(self.pid, signal.SIGCONT)
        return time.monotonic()

    def tell(self) -> None:
        """Let a writer begin."""
        os.kill(self.pid, signal.SIGUSR1)

    async def logged(self, pattern: str, timeout: float = 10) -> None:
        """Wait for a line in which the regular expression is found."""
        expression = re.compile(pattern)
        await wait_until(lambda: any(map(expression.search, self.lines())), timeout, f"no {pattern!r}: {self._output}")

    async def close(self) -> None:
        """End it, whatever state it is in."""
        if not self.is_dead:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            await wait_until(lambda: self.is_dead, 20)
        self._process.close()


@contextlib.asynccontextmanager
async def forked(role: str, options: Options, name: str) -> AsyncIterator[Peer]:
    """A `broker` or a `gateway` that serves, or a `writer` that is ready; it is gone when the block ends."""
    output = Path(options.directory) / f"{name}.out"
    process = FORKS.Process(target=main, args=(role, options, str(output)), name=name, daemon=True)
    process.start()
    peer = Peer(process, output)
    try:
        await peer.ready()
        yield peer
    finally:
        await peer.close()


def main(role: str, options: Options, output: str) -> None:
    """Be a process: serve until killed."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    roles = {"broker": broker, "gateway": gateway, "writer": writer}
    asyncio.run(roles[role](options))


async def broker(options: Options) -> None:
    """Look after runs, and execute them if there is an agent."""
    Deadly(options.dies_at, options.moment).arm()
    if options.is_deaf_to_leases:

        async def hear_nothing(*_: object) -> None:
            pass

        Watchdog._on_lease = hear_nothing  # type: ignore[assignment,method-assign]
    async with contextlib.AsyncExitStack() as stack:
        agent: Agent | None = journalling(options.journal()) if options.has_agent else None
        if options.upstream:
            agent = await stack.enter_async_context(http_agent(Platform(options.upstream), UpstreamSettings()))
        bound = stack.enter_context(listener())
        await stack.enter_async_context(Broker(options.settings(), agent=agent, listener=bound))
        print("ready", url_of(bound))
        await asyncio.Event().wait()


async def gateway(options: Options) -> None:
    """Serve clients."""
    Deadly(options.dies_at, options.moment).arm()
    bound = listener()
    async with Gateway(GatewaySettings(), options.settings(), listener=bound):
        print("ready", url_of(bound))
        await asyncio.Event().wait()


async def writer(options: Options) -> None:
    """Write one run by the library when told to, say `written`, and stay."""
    Deadly(options.dies_at, options.moment).arm()
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, told.set)
    answer = journalling(options.journal())
    asked = msgspec.json.encode(Asked(chunks=3, interval=0.05)).decode()
    async with Runs(options.nats_url, settings=options.settings(), drain_seconds=None) as runs:
        print("ready", "here")
        await told.wait()
        async with runs.open(agent_id=options.agent_id, conversation_id=options.conversation_id) as run:
            request = RunRequest(run_id=run.run_id, agent_id=options.agent_id, body={"input": asked})
            async with contextlib.aclosing(answer(request)) as chunks:
                async for chunk in chunks:
                    await run.publish(chunk)
        print("written")
        await asyncio.Event().wait()
