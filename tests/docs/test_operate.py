"""What the pages for operators have them type."""

import asyncio
import json
import signal
from pathlib import Path

from runstream.schemas import new_agent_id
from tests.docs.test_guides import START_SECONDS, answer, is_ready
from tests.support.documents import Desk, blocks_below, desk_in
from tests.support.http import events_of, fetch, open_stream
from tests.support.nats import NatsCluster
from tests.support.stack import message


async def test_separate_services(nats_cluster: NatsCluster, tmp_path: Path) -> None:
    """The streams are made, with three copies; then a broker and a gateway serve an agent of one's own."""
    make, serve = blocks_below("docs/operate/deploy.md", "Separate services", "sh")
    (agent,) = blocks_below("docs/guides/capture.md", "An agent of your own", "python")
    (tmp_path / "echo.py").write_text(agent, encoding="utf-8")
    urls = ",".join(url.removeprefix("nats://") for url in nats_cluster.urls)
    desk = desk_in(tmp_path, {"nats:4222": urls})
    async with desk.typing(make) as provision:
        assert await provision.wait(START_SECONDS) == 0, provision.report()
    assert "RUNS_0" in "\n".join(provision.lines)
    async with desk.typing(serve, {"PYTHONPATH": "."}):
        await asyncio.gather(is_ready(desk), is_ready(desk, 8284))
        path = f"/v1/agents/{new_agent_id()}/messages/stream"
        assert answer(await events_of(desk.base(), path, {"input": "from elsewhere"})) == "from elsewhere "


async def test_several_processes_on_one_port(desk: Desk) -> None:
    """Its workers serve the port together, and their parent says at the port of metrics that they do."""
    (command,) = blocks_below("docs/operate/size.md", "Several processes on one port", "sh")
    async with desk.typing(command, {"RUNSTREAM_PORT": str(desk.port(8300))}) as gateway:
        await gateway.wait_for_line("^ready ", START_SECONDS)
        await is_ready(desk, 8300)
        shown = (await fetch(desk.base(9283), "GET", "/metrics")).body.decode()
    assert "runstream_workers_alive 4.0" in shown


async def test_keys_for_the_users_of_nats(tmp_path: Path) -> None:
    """Each role has a secret key, and the server's environment the public ones."""
    (command,) = blocks_below("docs/operate/deploy.md", "A NATS that lets in only whom it knows", "sh")
    async with desk_in(tmp_path).typing(command) as shell:
        assert await shell.wait(START_SECONDS) == 0, shell.report()
    made = {path.name for path in (tmp_path / "keys").iterdir()}
    assert made == {"broker.nk", "gateway.nk", "provision.nk", "writer.nk", "nats.env"}


async def test_a_backup_of_one_machine(tmp_path: Path) -> None:
    """A run is there again, from its cursor on, after the data directory was copied, lost and put back."""
    copy, restore = blocks_below("docs/operate/backup.md", "One machine", "sh")
    desk = desk_in(tmp_path)
    async with desk.typing("exec runstream up") as up:
        await up.wait_for_line("^ready ", START_SECONDS)
        path = f"/v1/agents/{new_agent_id()}/messages/stream"
        async with open_stream(desk.base(), path, message({"chunks": 5, "interval_ms": 0})) as stream:
            events = await stream.rest()
        up.send_signal(signal.SIGTERM)
        assert await up.wait(START_SECONDS) == 0, up.report()
    async with desk.typing(f"set -e\n{copy}{restore}") as shell:
        assert await shell.wait(START_SECONDS) == 0, shell.report()
    async with desk.typing("exec runstream up") as up:
        await up.wait_for_line("^ready ", START_SECONDS)
        after = {"starting_after": events[2].seq_id}
        assert await events_of(desk.base(), f"/v1/runs/{events[0].json['run_id']}/stream", after) == events[3:]


async def test_a_rebuilt_index(desk: Desk) -> None:
    """The command for after a restore ends well where nothing is missing."""
    (command,) = blocks_below("docs/operate/backup.md", "Restore", "sh")
    async with desk.typing(command) as shell:
        assert await shell.wait(START_SECONDS) == 0, shell.report()


async def test_a_collector_that_is_away(desk: Desk) -> None:
    """A gateway that sends traces to nobody serves, and stops, as any other."""
    (command,) = blocks_below("docs/operate/watch.md", "Traces", "sh")
    nats = {"RUNSTREAM_NATS_URL": f"nats://{desk.addresses['nats:4222']}", "RUNSTREAM_PORT": str(desk.port(8300))}
    async with desk.typing(command, nats) as gateway:
        await gateway.wait_for_line("^ready ", START_SECONDS)
        await is_ready(desk, 8300)


async def test_a_key(tmp_path: Path) -> None:
    """Its hash is in the file; the key itself is shown once, on stderr."""
    (command,) = blocks_below("docs/operate/secure.md", "Keys", "sh")
    async with desk_in(tmp_path).typing(command) as shell:
        assert await shell.wait(START_SECONDS) == 0, shell.report()
    (line,) = (tmp_path / "keys").read_text(encoding="utf-8").splitlines()
    kept = json.loads(line)
    assert (kept["tenant"], kept["scopes"]) == ("acme", ["runs:read", "runs:write"])
    assert f"rsk_{kept['id']}_" in "\n".join(shell.errors)
    assert "rsk_" not in line
