"""`runstream gateway --workers`: several processes on one port, which all but operators meet as one gateway."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from runstream.gateway import worker
from runstream.gateway.metrics import GATEWAY_METRICS
from runstream.gateway.process import CannotStart, bind
from runstream.gateway.worker import Worker
from runstream.gateway.workers_metrics import WORKERS_METRICS
from runstream.schemas import new_agent_id
from tests.support.http import Connection, Cut, EventStream, Reply, fetch, open_stream
from tests.support.nats import NatsServer, free_ports
from tests.support.outages import paused
from tests.support.processes import RunningProcess, alive, descendants, python, running, runstream
from tests.support.services import SOURCE, START_SECONDS, Service, service
from tests.support.stack import PUPPET, Stack, message, stack_running
from tests.support.waiting import wait_until

NUMBERS = {"0", "1"}
SLOW_START_SECONDS = 2 * START_SECONDS
"""Three processes start one another."""
ENOUGH = 32
"""So many connections do not all go to one of two workers."""


class Workers(Service):
    """A gateway of two workers, seen from outside."""

    def __init__(self, process: RunningProcess, port: int, metrics_port: int) -> None:
        super().__init__(process, port)
        self.operators = f"http://127.0.0.1:{metrics_port}"

    async def is_ready(self) -> None:
        await self.process.wait_for_line("^ready ", SLOW_START_SECONDS)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """What the parent and the workers have said of something, the oldest first."""
        lines = [json.loads(line) for line in self.process.errors if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def pids(self) -> dict[str, int]:
        """The newest process of each worker."""
        return {str(line["worker"]): line["pid"] for line in self.logged("listening") if "worker" in line}

    async def shown(self) -> list[Family]:
        reply = await fetch(self.operators, "GET", "/metrics")
        assert reply.status == 200, reply
        return list(text_string_to_metric_families(reply.body.decode()))

    async def of_each(self, name: str) -> dict[str, float]:
        """A metric of each worker that is shown, over all its other labels."""
        found: dict[str, float] = {}
        for sample in [sample for family in await self.shown() for sample in family.samples if sample.name == name]:
            number = sample.labels["worker"]
            found[number] = found.get(number, 0) + sample.value
        return found

    async def own(self, name: str) -> float:
        """A metric of the parent's."""
        (value,) = [each.value for family in await self.shown() for each in family.samples if each.name == name]
        return value

    async def readiness(self) -> Reply:
        return await fetch(self.operators, "GET", "/readyz")

    async def serves(self) -> bool:
        """Whether all its workers are ready."""
        with contextlib.suppress(OSError, Cut):
            return (await self.readiness()).status == 200
        return False

    async def answer(self, count: int) -> list[int]:
        """The statuses of so many requests at one time, each on a connection of its own."""
        return [reply.status for reply in await asyncio.gather(*(self.get("/livez") for _ in range(count)))]

    def gone(self) -> bool:
        """Whether no process of any worker is left."""
        return not any(alive(line["pid"]) for line in self.logged("listening"))


@contextlib.asynccontextmanager
async def workers_running(nats_url: str, *args: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Workers]:
    """Two workers; nothing is left of them when the block ends."""
    (metrics_port,) = free_ports(1)
    several = ("--workers", "2", "--metrics-port", str(metrics_port))
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place = {"TMPDIR": str(directory), **(env or {})}
        started = await stack.enter_async_context(service("gateway", nats_url, *several, *args, env=place))
        workers = Workers(started.process, started.port, metrics_port)
        try:
            yield workers
        finally:
            if workers.process.returncode is None:
                # A second signal: some of these would drain.
                workers.process.send_signal(signal.SIGTERM)
                workers.process.send_signal(signal.SIGINT)
                await workers.process.wait()
            with contextlib.suppress(AssertionError):
                await wait_until(workers.gone, SLOW_START_SECONDS)
            left = [line["pid"] for line in workers.logged("listening") if alive(line["pid"])]
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        assert left == list(directory.iterdir()) == []


@pytest_asyncio.fixture(scope="module", autouse=True)
async def runs(nats_url: str) -> AsyncIterator[Stack]:
    """A broker for all of them, whose agent says what a test has it say."""
    async with stack_running(nats_url) as stack:
        yield stack


@pytest_asyncio.fixture(scope="module")
async def kept(nats_url: str, runs: Stack) -> AsyncIterator[Workers]:
    """Workers for tests that leave them as they were."""
    del runs
    async with workers_running(nats_url) as started:
        await started.is_ready()
        yield started


@pytest_asyncio.fixture
async def workers(kept: Workers) -> Workers:
    """All of them ready, whatever was done to them before."""
    await wait_until(kept.serves, SLOW_START_SECONDS)
    return kept


@contextlib.asynccontextmanager
async def streaming(runs: Stack, workers: Workers) -> AsyncIterator[dict[str, EventStream]]:
    """Streams of runs that go on, each by its run, at least one at each worker; all have seen one chunk."""
    streams: dict[str, EventStream] = {}

    async def nobody_follows() -> bool:
        return not any((await workers.of_each("runstream_followers")).values())

    await wait_until(nobody_follows)
    async with contextlib.AsyncExitStack() as stack:
        while not all((await workers.of_each("runstream_followers")).values()):
            assert len(streams) < ENOUGH, "one of the workers is sent nobody"
            create = open_stream(workers.base, f"/v1/agents/{new_agent_id()}/messages/stream", message(PUPPET))
            stream = await stack.enter_async_context(create)
            (ping,) = await stream.take(1)
            run_id = str(ping.json["run_id"])
            stack.callback(runs.puppet.finish, run_id)
            runs.puppet.say(run_id)
            await stream.take(1)
            streams[run_id] = stream
        yield streams


def resume(workers: Workers, run_id: str, after: int = 0) -> open_stream:
    return open_stream(workers.base, f"/v1/runs/{run_id}/stream", {"starting_after": after})


@contextlib.asynccontextmanager
async def kept_worker(directory: Path, code: str) -> AsyncIterator[tuple[Worker, asyncio.Task[None]]]:
    """A worker as its parent keeps it, with its life; its process runs this code, and has 0.1 s to drain."""
    with bind("127.0.0.1", 0, "port", is_shared=True) as listener:
        one = Worker(0, python("-c", code), listener, directory, drain_seconds=0.1)
        living = asyncio.create_task(one.live())
        try:
            yield one, living
        finally:
            living.cancel()
            await asyncio.wait([living])
            one.close()


async def asking(stack: contextlib.AsyncExitStack, workers: Workers) -> Connection:
    """A connection with a request on it that any worker answers."""
    connection = await stack.enter_async_context(Connection.open(workers.base))
    await connection.send("GET", "/livez")
    return connection


async def ended(stream: EventStream) -> bool:
    """Whether a stream came to its end; else it was cut."""
    with contextlib.suppress(Cut):
        await stream.rest()
        return True
    return False


# -- serving ----------------------------------------------------------------------------------------------------------


async def test_all_share_the_port_and_any_resumes_what_another_began(runs: Stack, workers: Workers) -> None:
    """Each of them has some of the streams, and whichever is met serves a run whole, the same byte for byte."""
    assert len([line for line in workers.process.lines if line.startswith("ready ")]) == 1
    async with streaming(runs, workers) as streams:
        run_id, stream = next(iter(streams.items()))
        runs.puppet.say(run_id, 3)
        runs.puppet.finish(run_id)
        await stream.rest()
    before = await workers.of_each("runstream_resumes_total")
    for _ in range(ENOUGH):
        async with resume(workers, run_id) as resumed:
            assert await resumed.rest() == stream.seen
        after = await workers.of_each("runstream_resumes_total")
        if all(after[number] > before[number] for number in NUMBERS):
            return
    pytest.fail("one of the workers has resumed nothing")


async def test_a_worker_that_is_killed_takes_its_own_streams_and_nothing_else(runs: Stack, workers: Workers) -> None:
    """Those are cut and resume; who has connected, and connects, is answered by its successor; the others go on."""
    restarts, victim = await workers.own("runstream_worker_restarts_total"), workers.pids()["0"]
    async with contextlib.AsyncExitStack() as stack:
        streams = await stack.enter_async_context(streaming(runs, workers))
        followers = await workers.of_each("runstream_followers")
        os.kill(victim, signal.SIGSTOP)
        # Half of these wait at its socket when it dies, and half of the others come to it when it is dead.
        waiting = [await asking(stack, workers) for _ in range(ENOUGH)]
        os.kill(victim, signal.SIGKILL)
        await wait_until(lambda: not alive(victim))
        waiting += [await asking(stack, workers) for _ in range(ENOUGH)]
        await wait_until(workers.serves, SLOW_START_SECONDS)
        assert [(await each.reply()).status for each in waiting] == [200] * len(waiting)
        for run_id in streams:
            runs.puppet.say(run_id, 2)
            runs.puppet.finish(run_id)
        whole = await asyncio.gather(*map(ended, streams.values()))
        for (run_id, stream), is_whole in zip(streams.items(), whole, strict=True):
            if not is_whole:
                async with resume(workers, run_id, stream.cursor) as resumed:
                    stream.seen += await resumed.rest()
            said = [event.json["content"] for event in stream.seen if event.message_type == "assistant_message"]
            assert said == ["0 ", "1 ", "2 "]
    assert whole.count(False) == followers["0"]
    assert workers.pids()["0"] != victim
    assert await workers.own("runstream_worker_restarts_total") == restarts + 1
    end = workers.logged("worker_ended")[-1]
    assert (end["worker"], end["status"]) == (0, -signal.SIGKILL)


async def test_a_worker_that_is_told_to_stop_drains_and_is_replaced(workers: Workers) -> None:
    """SIGTERM to one of them is how an operator has a fresh one."""
    stopped = workers.pids()["1"]
    os.kill(stopped, signal.SIGTERM)
    await wait_until(lambda: workers.pids()["1"] != stopped, SLOW_START_SECONDS)
    end = workers.logged("worker_ended")[-1]
    assert (end["worker"], end["status"]) == (1, 0)
    assert await workers.answer(ENOUGH) == [200] * ENOUGH


async def test_a_worker_that_cannot_be_replaced_keeps_nobody_waiting(nats_url: str, tmp_path: Path) -> None:
    """Its connections go to the other until it can; what keeps it from starting is logged, and ends nobody."""
    keys, aside = tmp_path / "keys", tmp_path / "aside"
    keys.touch()
    env = {"RUNSTREAM_AUTH": "static", "RUNSTREAM_AUTH_KEYS_FILE": str(keys)}
    async with workers_running(nats_url, env=env) as workers:
        await workers.is_ready()
        keys.rename(aside)
        os.kill(workers.pids()["0"], signal.SIGKILL)
        await wait_until(lambda: len(workers.logged("worker_ended")) > 1, SLOW_START_SECONDS)
        ends = workers.logged("worker_ended")
        assert str(keys) in ends[1]["said"]
        assert [end["restart_in"] for end in ends[:2]] == [0, 0.5]
        assert await workers.answer(ENOUGH) == [200] * ENOUGH
        aside.rename(keys)
        await wait_until(workers.serves, SLOW_START_SECONDS)


async def test_the_pauses_before_a_worker_is_started_again_grow_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once the first time; what ends again and again is not started hot, and is never given up."""
    monkeypatch.setattr(worker, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(worker, "LAST_PAUSE_SECONDS", 0.03)
    with capture_logs() as logs:
        async with kept_worker(tmp_path, "print('ready', 'here')") as (one, _):
            await wait_until(lambda: one.restarts == 5)
    # The broker of the other tests logs, too.
    assert [line["restart_in"] for line in logs if line["event"] == "worker_ended"][:5] == [0, 0.01, 0.02, 0.03, 0.03]


@pytest.mark.parametrize("told", ["to drain", "to end at once"])
async def test_a_worker_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    """Once its time is over: nobody waits for it any longer."""
    monkeypatch.setattr(worker, "LEAVING_SECONDS", 0.1)
    deaf = "import signal, time; signal.pthread_sigmask(signal.SIG_BLOCK, {2, 15}); print('ready', 'here', flush=True)"
    with capture_logs() as logs:
        async with kept_worker(tmp_path, f"{deaf}; time.sleep(600)") as (one, living):
            await one.ready.wait()
            if told == "to drain":
                one.drain()
            else:
                living.cancel()
            await asyncio.wait([living], timeout=10)
            assert living.done()
            assert not one.is_alive
    assert [line["event"] for line in logs if line["event"].startswith("worker_")] == ["worker_killed"]


async def test_ctrl_c_ends_one_that_drains(runs: Stack, nats_url: str) -> None:
    """An operator had a fresh one made in its place, and now wants none of them any more."""
    async with workers_running(nats_url, env={"RUNSTREAM_DRAIN_SECONDS": "600"}) as workers:
        await workers.is_ready()
        async with streaming(runs, workers):
            for pid in workers.pids().values():
                os.kill(pid, signal.SIGTERM)
            await wait_until(lambda: len([line for line in workers.logged("draining") if "worker" in line]) == 2)
            workers.process.interrupt_group()
            assert await workers.process.wait(8) == 0, workers.process.report()
        assert workers.gone()
        assert workers.logged("worker_killed") == []
        assert "Traceback" not in "\n".join(workers.process.errors)


async def test_a_socket_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """With what decides where it is; and nothing is left of it."""
    directory = tmp_path / ("x" * 100)
    directory.mkdir()
    with bind("127.0.0.1", 0, "port", is_shared=True) as listener:
        one = Worker(0, ["false"], listener, directory, drain_seconds=0.1)
        with pytest.raises(CannotStart, match=f"{directory}/0, below TMPDIR"):
            await one.live()
    assert list(directory.iterdir()) == []


async def test_of_a_process_that_cannot_be_started_no_socket_is_left(tmp_path: Path) -> None:
    """Else one more would be there each time that it is tried."""
    with bind("127.0.0.1", 0, "port", is_shared=True) as listener:
        one = Worker(0, [str(tmp_path / "not there")], listener, tmp_path, drain_seconds=0.1)
        with pytest.raises(CannotStart):
            await one.live()
    assert list(tmp_path.iterdir()) == []


# -- operators --------------------------------------------------------------------------------------------------------


async def test_metrics_are_of_each_worker_by_its_number(workers: Workers) -> None:
    """Every series of a gateway is there once for each, and is none without the label; and the parent has its own."""
    shown = {family.name: family for family in await workers.shown()}
    assert shown.keys() == {metric.name for metric in (*WORKERS_METRICS, *GATEWAY_METRICS)}
    for metric in GATEWAY_METRICS:
        family = shown[metric.name]
        assert (family.type, family.documentation) == (metric.kind, metric.says)
        series: dict[str, list[Any]] = {number: [] for number in NUMBERS}
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "worker"}
            series[sample.labels["worker"]].append((sample.name, labels))
        assert series["0"] == series["1"] != []
    for name in ("runstream_workers", "runstream_workers_alive", "runstream_workers_shown"):
        assert await workers.own(name) == 2
    assert (await workers.get("/metrics")).status == 404
    assert await workers.of_each("runstream_gateway_ready") == {"0": 1, "1": 1}


async def test_a_worker_that_does_not_answer_is_left_out_and_told_of(workers: Workers) -> None:
    """The others are shown as ever, their parent is not ready, and says because of which."""
    assert await workers.own("runstream_workers_shown") == 2
    stopped = workers.pids()["0"]
    os.kill(stopped, signal.SIGSTOP)
    try:
        ready, alone = await asyncio.gather(workers.readiness(), workers.of_each("runstream_gateway_ready"))
        assert (ready.status, ready.json["detail"]) == (503, "Worker 0 does not answer.")
        assert alone == {"1": 1}
        assert workers.logged("worker_left_out")[-1]["worker"] == 0
        assert (await fetch(workers.operators, "GET", "/livez")).status == 200
    finally:
        os.kill(stopped, signal.SIGCONT)
    await wait_until(workers.serves)
    assert await workers.own("runstream_workers_shown") == 2


async def test_metrics_are_shown_while_nats_hangs(runs: Stack, nats_server: NatsServer, workers: Workers) -> None:
    """Each worker waits for it before it shows what it has; its parent waits for the worker."""

    async def none_is_ready() -> bool:
        shown = await workers.of_each("runstream_gateway_ready")
        assert shown.keys() == NUMBERS
        return not any(shown.values())

    async with paused(nats_server):
        await wait_until(none_is_ready)
    await runs.is_back()


async def test_it_is_not_ready_without_nats_and_says_so_of_each() -> None:
    """Started without it, it serves, and waits; told to stop, it does so."""
    (port,) = free_ports(1)
    async with workers_running(f"nats://127.0.0.1:{port}") as workers:
        why = "Worker 0: NATS is not connected. Worker 1: NATS is not connected."

        async def says_why() -> bool:
            with contextlib.suppress(OSError, Cut):
                return bool((await workers.readiness()).json == {"status": "unavailable", "detail": why})
            return False

        await wait_until(says_why, SLOW_START_SECONDS)
        assert workers.process.lines == []
        workers.process.send_signal(signal.SIGTERM)
        assert await workers.process.wait() == 0, workers.process.report()
        assert workers.gone()


async def test_it_says_that_limits_are_of_each(workers: Workers) -> None:
    """At start, to whoever reads the log."""
    (said,) = [line for line in workers.logged("listening") if "worker" not in line]
    assert (said["workers"], said["url"], said["metrics"]) == (2, workers.base, workers.operators)
    assert "RUNSTREAM_MAX_FOLLOWERS" in said["meaning"]


# -- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["parent", "everybody"])
async def test_all_drain_together(runs: Stack, nats_url: str, told: str) -> None:
    """SIGTERM to the parent, or to all as systemd sends it: every stream is cut within the window, and 0."""
    async with workers_running(nats_url, env={"RUNSTREAM_DRAIN_SECONDS": "1"}) as workers:
        await workers.is_ready()
        async with streaming(runs, workers) as streams:
            if told == "everybody":
                workers.process.send_signal(signal.SIGTERM)
                for pid in workers.pids().values():
                    os.kill(pid, signal.SIGTERM)
            else:
                workers.process.send_signal(signal.SIGTERM)
            assert await asyncio.gather(*map(ended, streams.values())) == [False] * len(streams)
        assert await workers.process.wait() == 0, workers.process.report()
        assert workers.gone()
        drained = [line["streams"] for line in workers.logged("drained")]
        assert len(drained) == 2
        assert workers.logged("worker_ended") == workers.logged("worker_killed") == []
        assert "Traceback" not in "\n".join(workers.process.errors)


async def test_ctrl_c_ends_all_at_once(runs: Stack, nats_url: str) -> None:
    """SIGINT to the group, as a terminal sends it: nobody drains, nobody is told twice, and it ends with 0."""
    async with workers_running(nats_url, env={"RUNSTREAM_DRAIN_SECONDS": "600"}) as workers:
        await workers.is_ready()
        async with streaming(runs, workers) as streams:
            workers.process.interrupt_group()
            assert await workers.process.wait(8) == 0, workers.process.report()
            assert await asyncio.gather(*map(ended, streams.values())) == [False] * len(streams)
        assert workers.gone()
        stopped = [line["worker"] for line in workers.logged("stopping") if "worker" in line]
        assert sorted(stopped) == [0, 1]
        assert "Traceback" not in "\n".join(workers.process.errors)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_kills_all(runs: Stack, nats_url: str, second: signal.Signals) -> None:
    """Whoever does not want to wait for a drain says so again, to the parent."""
    async with workers_running(nats_url, env={"RUNSTREAM_DRAIN_SECONDS": "600"}) as workers:
        await workers.is_ready()
        async with streaming(runs, workers):
            workers.process.send_signal(signal.SIGTERM)
            await wait_until(lambda: len([line for line in workers.logged("draining") if "worker" in line]) == 2)
            workers.process.send_signal(second)
            assert await workers.process.wait(2) == 128 + second
        await wait_until(workers.gone, SLOW_START_SECONDS)


async def test_workers_end_with_a_parent_that_is_killed(runs: Stack, nats_url: str) -> None:
    """Each notices, drains as at SIGTERM, and is gone: there are no orphans."""
    async with workers_running(nats_url, env={"RUNSTREAM_DRAIN_SECONDS": "1"}) as workers:
        await workers.is_ready()
        async with streaming(runs, workers) as streams:
            workers.process.send_signal(signal.SIGKILL)
            assert await asyncio.gather(*map(ended, streams.values())) == [False] * len(streams)
        await wait_until(workers.gone, SLOW_START_SECONDS)
        assert await workers.process.wait() == -signal.SIGKILL
        assert sorted(line["worker"] for line in workers.logged("parent_ended")) == [0, 1]
        assert sorted(line["worker"] for line in workers.logged("drained")) == [0, 1]
        assert "Traceback" not in "\n".join(workers.process.errors)


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_workers_that_start_end_with_their_parent(nats_url: str, told: signal.Signals) -> None:
    """Whatever it is told before any of them serves: nothing is left, and nothing is wrong in the log."""
    async with workers_running(nats_url) as workers:
        await wait_until(lambda: len(descendants(workers.process.pid)) == 2, SLOW_START_SECONDS)
        starting = descendants(workers.process.pid)
        workers.process.send_signal(told)
        assert await workers.process.wait(SLOW_START_SECONDS) == (-told if told is signal.SIGKILL else 0)
        await wait_until(lambda: not any(map(alive, starting)), SLOW_START_SECONDS)
        assert "Traceback" not in "\n".join(workers.process.errors)


# -- starting ---------------------------------------------------------------------------------------------------------


async def refused(*args: str, workers: int = 2, code: int = 2, env: Mapping[str, str] | None = None) -> str:
    """What a gateway of workers says that does not start, in one line."""
    argv = runstream("gateway", "--workers", str(workers), *args)
    async with running(*argv, env={**SOURCE, **(env or {})}) as process:
        assert await process.wait(SLOW_START_SECONDS) == code, process.report()
        told = [line for line in process.errors if line.startswith("runstream: ")]
        assert len(told) == 1, process.report()
        assert "Traceback" not in "\n".join(process.errors)
        return told[0]


async def test_it_needs_a_port_for_metrics() -> None:
    """On the shared one any of the workers would show its own."""
    assert "--metrics-port" in await refused()


async def test_a_port_that_is_taken_is_refused() -> None:
    """Also one that others share already, as workers do: it is not joined."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = await refused("--port", port, "--metrics-port", "0", code=1)
        assert f"The port 127.0.0.1:{port} cannot be taken" in said


async def test_what_no_worker_can_start_with_ends_all_and_is_said_once(nats_url: str) -> None:
    """By the parent, with the words of a gateway that is alone."""
    args, env = ("--nats-url", nats_url, "--port", "0", "--metrics-port", "0"), {"RUNSTREAM_AUTH": "static"}
    said = await refused(*args, env=env)
    assert "RUNSTREAM_AUTH_KEYS_FILE" in said
    assert said == await refused(*args, workers=1, env=env)


async def test_no_port_is_open_to_strangers() -> None:
    """The parent refuses what a gateway refuses, before it starts anybody."""
    said = await refused("--host", "0.0.0.0", "--port", "0", "--metrics-port", "0")
    assert "--auth none" in said


async def test_one_worker_is_a_gateway_as_ever(nats_url: str) -> None:
    """There is no parent then, nor any need of a port for metrics."""
    async with service("gateway", nats_url, "--workers", "1") as alone:
        await alone.is_ready()
        assert descendants(alone.process.pid) == []
        assert (await alone.get("/metrics")).status == 200
