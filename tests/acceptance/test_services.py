"""`runstream gateway` and `runstream broker`: processes of their own, in any order and number, killed one by one."""

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from runstream.broker.embedded import EmbeddedServer
from runstream.schemas import new_agent_id, new_conversation_id, new_run_id
from tests.support.http import DONE, Connection, Cut, Event, fetch, open_stream
from tests.support.nats import free_ports
from tests.support.processes import running, runstream
from tests.support.services import SOURCE, START_SECONDS, Service, service
from tests.support.stack import message
from tests.support.waiting import wait_until


def create(gateway: Service, **knobs: Any) -> open_stream:
    return open_stream(gateway.base, f"/v1/agents/{new_agent_id()}/messages/stream", message(knobs))


def resume(gateway: Service, run_id: str, after: int = 0) -> open_stream:
    return open_stream(gateway.base, f"/v1/runs/{run_id}/stream", {"starting_after": after})


def texts(events: Sequence[Event]) -> int:
    return sum(event.message_type == "assistant_message" for event in events)


@pytest.mark.parametrize("kind", ["gateway", "broker"])
async def test_a_service_stops_in_good_order_without_nats(tmp_path: Path, kind: str) -> None:
    """Asked to stop while NATS is away, it ends as if it were there."""
    (port,) = free_ports(1)
    url = f"nats://127.0.0.1:{port}"
    async with service(kind, url) as served:
        async with EmbeddedServer(tmp_path / "nats", port=port), service("broker", url) as other:
            await other.is_ready()
            await served.is_ready()
        await wait_until(lambda: served.answers("/readyz", 503))
        served.process.send_signal(signal.SIGTERM)
        assert await served.process.wait() == 0, served.process.report()
        assert "Traceback" not in "\n".join(served.process.errors)


@pytest.mark.parametrize("kind", ["gateway", "broker"])
async def test_a_service_waits_for_nats(tmp_path: Path, kind: str) -> None:
    """Started without NATS it lives and is not ready, says why, and is ready by itself once NATS is there."""
    (port,) = free_ports(1)
    url = f"nats://127.0.0.1:{port}"
    async with service(kind, url, *(["--agent", "demo"] if kind == "broker" else [])) as started:
        await wait_until(lambda: started.answers("/livez", 200), START_SECONDS)
        await wait_until(lambda: any("nats_awaited" in line for line in started.process.errors), START_SECONDS)
        awaited = next(line for line in started.process.errors if "nats_awaited" in line)
        assert url in awaited
        assert "--nats-url or RUNSTREAM_NATS_URL says where NATS is" in awaited
        unready = await started.get("/readyz")
        assert (unready.status, unready.json["detail"]) == (503, "NATS is not connected.")
        assert (await started.get("/metrics")).status == 200
        if kind == "gateway":
            refused = await started.get(f"/v1/runs/{new_run_id()}")
            assert (refused.status, refused.headers["retry-after"]) == (503, "2")
        assert started.process.lines == []
        async with EmbeddedServer(tmp_path, port=port, start_timeout=START_SECONDS):
            if kind == "gateway":
                await started.is_ready()
                detail = "The store has no streams yet: a broker makes them when it starts. Try again."
                refused = await started.get(f"/v1/runs/{new_run_id()}")
                assert (refused.status, refused.json["detail"]) == (503, detail)
                async with service("broker", url) as broker:
                    await broker.is_ready()
                    await wait_until(lambda: started.answers("/readyz", 200), START_SECONDS)
                    assert (await started.get(f"/v1/runs/{new_run_id()}")).status == 404
            else:
                await started.is_ready()
                await wait_until(lambda: started.answers("/readyz", 200), START_SECONDS)


@pytest.mark.parametrize("kind", ["gateway", "broker"])
async def test_a_service_that_waits_can_be_stopped(kind: str) -> None:
    """SIGTERM ends it with exit code 0, whether NATS ever came or not."""
    (port,) = free_ports(1)
    async with service(kind, f"nats://127.0.0.1:{port}") as started:
        await wait_until(lambda: started.answers("/livez", 200), START_SECONDS)
        started.process.send_signal(signal.SIGTERM)
        assert await started.process.wait(5) == 0, started.process.report()
        assert "Traceback" not in "\n".join(started.process.errors)


@pytest.mark.parametrize("kind", ["gateway", "broker"])
async def test_metrics_have_a_port_of_their_own_if_told(nats_url: str, kind: str) -> None:
    """With --metrics-port the service's own port, which clients may fill, does not show them; probes are on both."""
    (port,) = free_ports(1)
    async with service(kind, nats_url, "--metrics-port", str(port)) as started:
        await started.is_ready()
        assert (await started.get("/metrics")).status == 404
        shown = await fetch(f"http://127.0.0.1:{port}", "GET", "/metrics")
        assert b"runstream_nats_reconnects" in shown.body
        for probe in ("/livez", "/readyz"):
            own = await started.get(probe)
            assert own.status == 200 or (probe, kind) == ("/readyz", "gateway"), own  # That waits for a broker.
            assert (await fetch(f"http://127.0.0.1:{port}", "GET", probe)).json == own.json


@pytest.mark.parametrize("kind", ["gateway", "broker"])
async def test_a_full_port_is_probed_at_the_other_one(nats_url: str, kind: str) -> None:
    """Clients that have filled a service's port keep nobody from probing it: it lives, and is ready when one leaves."""
    (port,) = free_ports(1)
    probed = f"http://127.0.0.1:{port}"
    settings = {"RUNSTREAM_MAX_CONNECTIONS": "4", "RUNSTREAM_HEAD_SECONDS": "60"}

    async def is_full() -> bool:
        found = await fetch(probed, "GET", "/readyz")
        return (found.status, found.json.get("detail")) == (503, "As many connections are open as may be.")

    async def has_room() -> bool:
        return not await is_full()

    async with contextlib.AsyncExitStack() as opened:
        metrics_port = ("--metrics-port", str(port))
        started = await opened.enter_async_context(service(kind, nats_url, *metrics_port, env=settings))
        await started.is_ready()
        assert await has_room()
        clients = [await opened.enter_async_context(Connection.open(started.base)) for _ in range(4)]
        await wait_until(is_full, 5, "it takes more clients than it may have")
        async with Connection.open(started.base) as refused:
            assert await refused.ends()
        assert (await fetch(probed, "GET", "/livez")).status == 200
        clients[0].writer.transport.abort()
        await wait_until(has_room, 5, "one has left, and it takes nobody else")


async def test_without_a_broker_that_could_nothing_is_claimed(tmp_path: Path) -> None:
    """A message is refused while only a broker without an agent is there, and answered once there is one with."""
    path = f"/v1/agents/{new_agent_id()}/messages/stream"
    asked = message("", messages=[{"role": "user", "content": '{"chunks": 2}', "otid": "asked twice"}])
    grace = {"RUNSTREAM_AGENT_GRACE_SECONDS": "0.5"}
    async with contextlib.AsyncExitStack() as stack:
        # A server of its own: runs that were taken within the grace wait there for a broker.
        nats_server = await stack.enter_async_context(EmbeddedServer(tmp_path, start_timeout=START_SECONDS))
        nats_url = nats_server.url
        gateway = await stack.enter_async_context(service("gateway", nats_url, env=grace))
        idle = await stack.enter_async_context(service("broker", nats_url))
        await asyncio.gather(gateway.is_ready(), idle.is_ready())
        refused = await fetch(gateway.base, "POST", path, json=asked)
        assert (refused.status, refused.json) == (503, {"detail": "No agent is configured."})
        assert refused.headers["retry-after"] == "2"
        unknown = await fetch(
            gateway.base, "POST", f"/v1/conversations/{new_conversation_id()}/stream", json={"otid": "asked twice"}
        )
        assert unknown.status == 404
        async with service("broker", nats_url, "--agent", "demo") as broker:
            await broker.is_ready()
            async with open_stream(gateway.base, path, asked) as stream:
                answered = await stream.rest()
            assert answered[-1] == DONE
            await broker.kill()
        other = {**asked, "messages": [{"role": "user", "content": "something else"}]}

        async def refuses() -> bool:
            # Taken within the grace, it is a run that waits for a broker: its stream is left at once.
            with contextlib.suppress(AssertionError):
                async with open_stream(gateway.base, path, other):
                    return False
            return True

        await wait_until(refuses, 20)
        async with open_stream(gateway.base, path, asked) as stream:
            assert await stream.rest() == answered


@pytest.mark.parametrize(
    "victim", ["the gateway it is read from", "the other gateway", "its broker", "the other broker"]
)
async def test_two_of_each_survive_a_kill_of_any(nats_url: str, victim: str) -> None:
    """Two brokers share the work, two gateways serve every run; whoever is killed, no stored chunk is lost."""
    async with contextlib.AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(service("broker", nats_url, "--agent", "demo")) for _ in range(2)]
        gateways = [await stack.enter_async_context(service("gateway", nats_url)) for _ in range(2)]
        await asyncio.gather(*(started.is_ready() for started in [*brokers, *gateways]))
        async with create(gateways[0], chunks=40, interval_ms=50) as stream:
            begun = await stream.take(8)
            run_id = str(begun[0].json["run_id"])
            owner, other = await owner_of(brokers, run_id)
            if victim == "the gateway it is read from":
                await gateways[0].kill()
                with pytest.raises(Cut):
                    await stream.rest()
            elif victim == "the other gateway":
                await gateways[1].kill()
                await stream.rest()
            else:
                await (owner if victim == "its broker" else other).kill()
                await stream.rest()
        survivor = gateways[0] if victim == "the other gateway" else gateways[1]
        async with resume(survivor, run_id, stream.cursor) as resumed:
            rest = await resumed.rest()
        async with resume(survivor, run_id) as whole:
            seen = await whole.rest()
        assert stream.seen == seen[: len(stream.seen)]
        # What has no cursor of its own, the stop reason and the usage, is repeated; nothing else is.
        (last,) = [number for number, event in enumerate(seen) if event.seq_id == stream.cursor]
        assert rest == seen[last + 1 :]
        if victim == "its broker":
            assert 7 <= texts(seen) < 40
            assert [event.json.get("error_type") for event in seen if event.event == "error"] == ["run_lost"]
        else:
            assert texts(seen) == 40
        assert seen[-1] == DONE
        # Whoever is left does the work of both.
        async with create(survivor, chunks=3) as stream:
            assert texts(await stream.rest()) == 3


async def owner_of(brokers: Sequence[Service], run_id: str) -> tuple[Service, Service]:
    """The broker that executes the only live run there is, and the other one."""
    live = [b"runstream_runs_live 1.0" in (await broker.get("/metrics")).body for broker in brokers]
    assert sorted(live) == [False, True], f"{run_id} is executed by {live}"
    owner = live.index(True)
    return brokers[owner], brokers[1 - owner]


async def test_brokers_share_the_work(tmp_path: Path) -> None:
    """Of a hundred runs at once each broker executes some, none executes one twice, and all are complete."""
    async with contextlib.AsyncExitStack() as stack:
        # A lease that no busy machine outlasts, on a server of its own: the work queue keeps the one it is made with.
        narrow = {"RUNSTREAM_WORKER_CONCURRENCY": "20", "RUNSTREAM_LEASE_SECONDS": "60"}
        nats_url = (await stack.enter_async_context(EmbeddedServer(tmp_path, start_timeout=START_SECONDS))).url
        brokers = [
            await stack.enter_async_context(service("broker", nats_url, "--agent", "demo", env=narrow))
            for _ in range(2)
        ]
        gateway = await stack.enter_async_context(service("gateway", nats_url))
        await asyncio.gather(*(started.is_ready() for started in [*brokers, gateway]))

        async def run() -> int:
            async with create(gateway, chunks=5, interval_ms=20) as stream:
                return texts(await stream.rest())

        assert await asyncio.gather(*(run() for _ in range(100))) == [5] * 100
        executed = [await started_runs(broker) for broker in brokers]
        assert sum(executed) == 100
        assert min(executed) > 0


async def started_runs(broker: Service) -> int:
    (line,) = [
        line
        for line in (await broker.get("/metrics")).body.decode().splitlines()
        if line.startswith("runstream_runs_started_total")
    ]
    return int(float(line.split()[1]))


async def test_one_environment_is_for_both_services(nats_url: str) -> None:
    """A gateway's port and a broker's have a variable each, so that neither takes the other's."""
    ports = dict(zip(("gateway", "broker"), free_ports(2), strict=True))
    env = {**SOURCE, "RUNSTREAM_NATS_URL": nats_url, "RUNSTREAM_PORT": str(ports["gateway"])}
    env["RUNSTREAM_BROKER_PORT"] = str(ports["broker"])
    for kind, port in ports.items():
        async with running(*runstream(kind), env=env) as process:
            assert await process.wait_for_line("^ready ", START_SECONDS) == f"ready http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("args", "code", "complaint"),
    [
        (["broker", "--agent", "no_such_module:answer"], 2, "there is no module 'no_such_module' on PYTHONPATH"),
        (["broker", "--agent", "demo2"], 2, "There is no agent 'demo2'"),
        (["broker", "--nats-url", "http://user:secret@nats"], 2, "write the URL of NATS as nats://host:4222"),
        (["gateway", "--nats-url", "user:secret@nats:port"], 2, "write the URL of NATS as nats://host:4222"),
        (["gateway", "--nats-url", "", "--port", "0"], 2, "The URL of NATS is empty"),
        (["gateway", "--port", "70000"], 2, "port: Input should be less than or equal to 65535"),
        (["gateway", "--host", "no.such.host.invalid"], 1, "The host no.such.host.invalid is not known"),
        (["gateway", "--host", "192.0.2.1"], 1, "The port 192.0.2.1:8283 cannot be taken"),
    ],
)
async def test_what_can_never_work_is_refused_at_once(args: list[str], code: int, complaint: str) -> None:
    """What waiting would not mend ends the command, with one line that says what to do; 2 for what it was given."""
    async with running(*runstream(*args), env=SOURCE) as process:
        assert await process.wait(START_SECONDS) == code, process.report()
        assert complaint in process.errors[-1]
        assert process.errors[-1].startswith("runstream: ")
        assert "secret" not in "\n".join(process.errors)
        assert "Traceback" not in "\n".join(process.errors)
