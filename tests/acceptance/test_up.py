"""`runstream up`, as a user runs it: it starts with one command, says where, survives, and ends without a trace."""

import asyncio
import contextlib
import json
import os
import pkgutil
import re
import shlex
import signal
import socket
import sys
import tomllib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from runstream.broker.datadir import DataDirectory
from runstream.broker.errors import EmbeddedServerError
from runstream.broker.topology import shard_of_cursor
from runstream.gateway.cli import main
from runstream.schemas import new_agent_id
from tests.support.http import DONE, Cut, Reply, events_of, fetch, open_stream
from tests.support.nats import free_ports
from tests.support.processes import RunningProcess, alive, descendants, running, runstream
from tests.support.stack import message
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
PROMISED_SECONDS = 5.0
FREE_PORTS = ("--port", "0", "--broker-port", "0")
# The source as it lies, wherever the process is started.
SOURCE = {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("schemas", "broker", "gateway"))}


def soon() -> float:
    """The seconds that a start or an end may take: as promised, and more where others want the processors, too."""
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    return PROMISED_SECONDS * min(max(1.0, busy), 4.0)


class Up:
    """A `runstream up` that serves."""

    def __init__(self, process: RunningProcess, data_dir: Path) -> None:
        self.process = process
        self.data_dir = data_dir
        self.endpoints: dict[str, str] = json.loads((data_dir / "endpoints.json").read_text())

    @property
    def base(self) -> str:
        return self.endpoints["gateway"]

    @property
    def nats_pid(self) -> int:
        """The embedded nats-server's process."""
        (pid,) = (
            pid for pid in descendants(self.process.pid) if b"nats-server" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        return pid

    def create(self, **knobs: Any) -> open_stream:
        return open_stream(self.base, f"/v1/agents/{new_agent_id()}/messages/stream", message(knobs))

    def resume(self, run_id: str, starting_after: int = 0) -> open_stream:
        return open_stream(self.base, f"/v1/runs/{run_id}/stream", {"starting_after": starting_after})


@contextlib.asynccontextmanager
async def up(data_dir: Path, *args: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Up]:
    """The command, ready; it is ended with its children when the block is."""
    argv = runstream("up", *FREE_PORTS, "--data-dir", data_dir, *args)
    async with running(*argv, env={**SOURCE, **(env or {})}) as process:
        await process.wait_for_line("^ready ")
        yield Up(process, data_dir)


async def ends(process: RunningProcess, number: signal.Signals) -> int:
    """Send a signal; the exit code, which must come soon, with no child left."""
    family = descendants(process.pid)
    assert family, "there is no nats-server to leave behind"
    process.send_signal(number)
    code = await process.wait(soon())
    await wait_until(lambda: not [pid for pid in family if alive(pid)], 2, "a child is left")
    return code


async def refused(
    *args: str | Path, code: int = 1, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str:
    """What a `runstream up` that cannot start says: on stderr, soon, with its exit code and no traceback."""
    async with running(*runstream("up", *args), env={**SOURCE, **(env or {})}, cwd=cwd) as process:
        ended = await process.wait(soon())
        assert (ended, process.lines) == (code, []), process.report()
        assert not [line for line in process.errors if "Traceback" in line], process.report()
        last = process.errors[-1]
    assert last.startswith("runstream: ")
    return last


async def health(base: str, path: str) -> Reply:
    return await fetch(base, "GET", path)


async def test_says_where_it_is_and_ends_without_a_trace(tmp_path: Path) -> None:
    """One line on stdout says where it serves; a note says where its parts are, as long as it runs."""
    async with up(tmp_path / "data") as served:
        assert set(served.endpoints) == {"gateway", "broker", "nats"}
        assert served.process.lines == [f"ready {served.base}"]
        assert {urlsplit(url).hostname for url in served.endpoints.values()} == {"127.0.0.1"}
        assert len({urlsplit(url).port for url in served.endpoints.values()}) == 3
        async with served.create(chunks=2, interval_ms=0) as stream:
            assert (await stream.rest())[-1] == DONE
        assert await ends(served.process, signal.SIGTERM) == 0
        assert served.process.lines == [f"ready {served.base}"]
        assert not (tmp_path / "data" / "endpoints.json").exists()
        # What it tells a person stands on stderr, and works as it stands there.
        told = "\n".join(served.process.errors)
        assert f"curl -N {served.base}/v1/agents/agent-" in told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("streams", [0, 3])
async def test_signal_ends_it(tmp_path: Path, number: signal.Signals, streams: int) -> None:
    """SIGINT and SIGTERM end it with exit code 0, soon, open streams or not; those are cut, not ended."""
    async with up(tmp_path / "data") as served, contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(served.create(silence_ms=60_000)) for _ in range(streams)]
        for stream in opened:
            await stream.take(1)
        assert await ends(served.process, number) == 0
        for stream in opened:
            with pytest.raises(Cut):
                await stream.rest()
            assert DONE not in stream.seen


async def test_interrupt_from_the_terminal_ends_it(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole process group: the nats-server is ended last all the same, in order."""
    async with up(tmp_path / "data") as served:
        family = descendants(served.process.pid)
        served.process.interrupt_group()
        assert await served.process.wait(soon()) == 0
        assert not [pid for pid in family if alive(pid)]
        assert "nats_server_died" not in "\n".join(served.process.errors)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_runs_survive_a_restart(tmp_path: Path, number: signal.Signals) -> None:
    """A finished run is read on from its cursor, and a live one has ended: as interrupted, or after a kill as lost."""
    lease = {"RUNSTREAM_LEASE_SECONDS": "1"}
    async with up(tmp_path / "data", env=lease) as served:
        async with served.create(chunks=10, interval_ms=0) as stream:
            finished = await stream.rest()
        async with served.create(chunks=1000, interval_ms=20) as stream:
            interrupted = await stream.take(10)
        family = descendants(served.process.pid)
        served.process.send_signal(number)
        assert await served.process.wait(soon()) == (0 if number is signal.SIGTERM else -number)
        await wait_until(lambda: not [pid for pid in family if alive(pid)], 2, "a child is left")
    async with up(tmp_path / "data", env=lease) as served:
        async with served.resume(finished[0].json["run_id"], finished[4].seq_id or 0) as stream:
            assert await stream.rest() == finished[5:]
        async with served.resume(interrupted[0].json["run_id"]) as stream:
            events = await stream.rest(deadline=30)
    assert events[: len(interrupted)] == interrupted
    assert events[-1] == DONE
    error_type = "stream_task_cancelled" if number is signal.SIGTERM else "run_lost"
    assert (events[-2].event, events[-2].json["error_type"]) == ("error", error_type)
    assert {event.message_type for event in events[1:-3]} == {"assistant_message"}


@pytest.mark.parametrize("name", ["RUNS_0", "KV_RUNSTREAM"])
async def test_what_cannot_be_loaded_is_not_made_anew(tmp_path: Path, name: str) -> None:
    """A stream whose file was cut short: nothing is made in its place, and with the file mended its runs are there."""
    data_dir = tmp_path / "data"
    async with up(data_dir) as served, served.create(chunks=10, interval_ms=0) as stream:
        finished = await stream.rest()
    stored = data_dir / "jetstream" / "$G" / "streams" / name
    whole = (stored / "meta.inf").read_bytes()
    (stored / "meta.inf").write_bytes(b"")
    complaint = await refused(*FREE_PORTS, "--data-dir", data_dir)
    assert f"could not load the stream {name}, whose messages are in {stored}" in complaint
    (stored / "meta.inf").write_bytes(whole)
    async with up(data_dir) as served, served.resume(finished[0].json["run_id"]) as stream:
        assert await stream.rest() == finished


async def test_what_cannot_be_loaded_of_fewer_shards_is_not_passed_over(tmp_path: Path) -> None:
    """Runs of a shard that the settings no longer have are read as ever: that they cannot be is said."""
    data_dir = tmp_path / "data"
    stored = data_dir / "jetstream" / "$G" / "streams" / "RUNS_1"
    async with up(data_dir, env={"RUNSTREAM_SHARDS": "2"}) as served:
        shards = set()
        while 1 not in shards:
            async with served.create(chunks=1, interval_ms=0) as stream:
                shards |= {shard_of_cursor(event.seq_id) for event in await stream.rest() if event.seq_id}
    (stored / "meta.inf").write_bytes(b"")
    complaint = await refused(*FREE_PORTS, "--data-dir", data_dir)
    assert f"could not load the stream RUNS_1, whose messages are in {stored}" in complaint


async def test_a_first_start_that_was_killed_is_begun_again(tmp_path: Path) -> None:
    """What nats-server writes of a stream before there is one, and before it has a message, is in nobody's way."""
    data_dir = tmp_path / "data"
    async with up(data_dir):
        pass
    stored = data_dir / "jetstream" / "$G" / "streams" / "RUNS_0"
    assert [block.stat().st_size for block in (stored / "msgs").glob("*.blk") if block.stat().st_size] == [30]
    for name in ("meta.inf", "meta.sum"):
        (stored / name).unlink()
    async with up(data_dir) as served, served.create(chunks=1, interval_ms=0) as stream:
        assert (await stream.rest())[-1] == DONE


async def test_stream_outlives_the_nats_server(tmp_path: Path) -> None:
    """The nats-server is killed under an open stream: it is started again, and the stream goes on to its end, whole."""
    async with up(tmp_path / "data") as served:
        async with served.create(chunks=100, interval_ms=20, text=" ".join(map(str, range(100)))) as stream:
            await stream.take(20)
            killed = served.nats_pid
            os.kill(killed, signal.SIGKILL)
            events = await stream.rest(deadline=30)
            spoken = [event.json["content"] for event in stream.seen if event.message_type == "assistant_message"]
            assert spoken == [f"{number} " for number in range(100)]
            assert events[-1] == DONE
        async with served.resume(events[0].json["run_id"]) as stream:
            again = await stream.rest()
        assert [event for event in again if event.seq_id][-1] == [event for event in events if event.seq_id][-1]
        assert served.nats_pid != killed


async def test_health_and_metrics(tmp_path: Path) -> None:
    """Both ports say whether they live and are ready, and what they count."""
    async with up(tmp_path / "data") as served:
        for name, counted in (("gateway", "runstream_followers"), ("broker", "runstream_")):
            base = served.endpoints[name]
            for path in ("/livez", "/readyz"):
                reply = await health(base, path)
                assert (reply.status, reply.json) == (200, {"status": "ok"})
            metrics = await health(base, "/metrics")
            assert metrics.status == 200
            assert metrics.headers["content-type"].startswith("text/plain")
            assert re.search(rf"^{counted}", metrics.body.decode(), re.MULTILINE)
        found = (await health(served.endpoints["gateway"], "/v1/runstream/health")).json["settings"]
        # Of the command, of who is let in, of limits, of the gateway and of what is stored.
        of_each = {"HOST": "127.0.0.1", "AUTH": "none", "MAX_CONNECTIONS": 20_000, "CONSOLE": True, "REPLICAS": 1}
        shown = {each["name"]: each["value"] for each in found}
        assert shown.items() >= {f"RUNSTREAM_{name}": value for name, value in of_each.items()}.items()
        assert len(shown) == len(found), "a setting is there twice"


async def test_unready_while_nats_hangs(tmp_path: Path) -> None:
    """While the nats-server does not answer, both ports are alive and not ready; when it does, they are ready again."""
    async with up(tmp_path / "data", env={"RUNSTREAM_REQUEST_TIMEOUT_SECONDS": "250ms"}) as served:
        bases = [served.endpoints[name] for name in ("gateway", "broker")]

        async def answer(status: int) -> bool:
            return [(await health(base, "/readyz")).status for base in bases] == [status] * 2

        os.kill(served.nats_pid, signal.SIGSTOP)
        try:
            await wait_until(lambda: answer(503), 20, "they stay ready")
            reply = await health(bases[0], "/readyz")
            assert reply.json["status"] == "unavailable"
            assert reply.detail
            for base in bases:
                assert (await health(base, "/livez")).status == 200
        finally:
            os.kill(served.nats_pid, signal.SIGCONT)
        await wait_until(lambda: answer(200), 20, "they do not become ready again")


@pytest.mark.parametrize("flag", ["--port", "--broker-port"])
async def test_port_is_taken(tmp_path: Path, flag: str) -> None:
    """A port that is taken is named, with the flag that chooses another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = await refused(*FREE_PORTS, flag, str(port), "--data-dir", tmp_path / "data")
    assert f"127.0.0.1:{port} cannot be taken" in said
    assert f"with {flag} " in said


@pytest.mark.parametrize(("listening", "asked"), [("127.0.0.1", "localhost"), ("0.0.0.0", "127.0.0.1")])
async def test_its_own_address_is_no_agent(tmp_path: Path, listening: str, asked: str) -> None:
    """What would ask itself for every answer does not start, and says which address it is."""
    (port,) = free_ports(1)
    own = ("--host", listening, "--port", str(port), "--broker-port", "0", "--insecure")
    said = await refused(*own, "--agent", f"http://{asked}:{port}/chat", "--data-dir", tmp_path / "data", code=2)
    assert f"{asked}:{port}, is this runstream's own" in said


async def test_nats_port_is_taken(tmp_path: Path) -> None:
    """The same for the embedded nats-server's port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        argv = runstream("up", *FREE_PORTS, "--nats-port", str(port), "--data-dir", tmp_path / "data")
        async with running(*argv, env=SOURCE) as process:
            assert await process.wait(soon()) == 1
            assert f"Port {port} is in use" in "\n".join(process.errors)


async def test_data_directory_is_in_use(tmp_path: Path) -> None:
    """A second one on the same data directory is told who has it, and leaves the first one's note alone."""
    with DataDirectory(tmp_path / "data") as directory:
        note = directory.write_endpoints({"gateway": "http://127.0.0.1:1"})
        said = await refused(*FREE_PORTS, "--data-dir", tmp_path / "data")
        assert note.exists()
    assert f"in use by another runstream (pid {os.getpid()})" in said


async def test_data_directory_cannot_be_made(tmp_path: Path) -> None:
    """A data directory that cannot be is named."""
    (tmp_path / "file").touch()
    said = await refused(*FREE_PORTS, "--data-dir", tmp_path / "file" / "data")
    assert f"{tmp_path / 'file' / 'data'} cannot be used" in said


async def test_data_directory_takes_no_note(tmp_path: Path) -> None:
    """One in which the note of where it listens cannot be replaced is named, with what is in the way."""
    (tmp_path / "data" / "endpoints.json").mkdir(parents=True)
    said = await refused(*FREE_PORTS, "--data-dir", tmp_path / "data")
    assert f"{tmp_path / 'data'} cannot be used: Is a directory." in said


async def test_data_directory_that_is_gone_takes_no_note(tmp_path: Path) -> None:
    """It may go, or become one that may not be written to, after it was taken."""
    with DataDirectory(tmp_path / "data") as directory:
        directory.path.rename(tmp_path / "elsewhere")
        with pytest.raises(EmbeddedServerError, match="cannot be used: No such file or directory"):
            directory.write_endpoints({"gateway": "http://127.0.0.1:1"})


async def test_the_embedded_server_keeps_one_copy(tmp_path: Path) -> None:
    """Asked for three it says which setting is to go, and not that a stream is to be removed."""
    three = {"RUNSTREAM_REPLICAS": "3"}
    for _ in ("a new directory", "one with streams"):
        said = await refused(*FREE_PORTS, "--data-dir", tmp_path / "data", env=three)
        assert said.endswith("A server that is in no cluster keeps one copy: set RUNSTREAM_REPLICAS to 1.")
        async with up(tmp_path / "data"):
            pass


async def test_nats_cannot_be_reached(tmp_path: Path) -> None:
    """A NATS that is not there is named."""
    (port,) = free_ports(1)
    said = await refused(*FREE_PORTS, "--nats-url", f"nats://127.0.0.1:{port}", "--data-dir", tmp_path / "data", code=3)
    assert f"Cannot reach NATS at nats://127.0.0.1:{port}" in said


async def test_nats_does_not_answer(tmp_path: Path) -> None:
    """A NATS that takes the connection and says nothing is no NATS."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        said = await refused(*FREE_PORTS, "--nats-url", url, "--data-dir", tmp_path / "data", code=3)
    assert f"Cannot reach NATS at {url}" in said


async def old_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say what a nats-server of last year says to whoever connects, and answer its pings."""
    info = {"server_id": "X", "version": "2.11.0", "max_payload": 2**20, "headers": True, "jetstream": True}
    writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
    writer.close()


async def test_nats_server_is_too_old(tmp_path: Path) -> None:
    """A nats-server older than what runstream is built on is refused, with both versions."""
    async with await asyncio.start_server(old_server, "127.0.0.1", 0) as server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        said = await refused(*FREE_PORTS, "--nats-url", url, "--data-dir", tmp_path / "data")
    assert "2.11.0" in said
    assert "needs 2.12.0 or newer" in said


async def test_unknown_agent(tmp_path: Path) -> None:
    """An agent that nobody knows is named, with those there are."""
    said = await refused(*FREE_PORTS, "--agent", "nobody", "--data-dir", tmp_path / "data", code=2)
    assert "There is no agent 'nobody'" in said
    assert "demo" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RUNSTREAM_KEEPALIVE_SECONDS", "soon"),
        ("RUNSTREAM_PORT", "70000"),
        ("RUNSTREAM_SHARDS", "9"),
        ("RUNSTREAM_RETENTION", "-1"),
        ("RUNSTREAM_LOG_LEVEL", "loud"),
    ],
)
async def test_setting_is_not_valid(tmp_path: Path, name: str, value: str) -> None:
    """A setting that cannot be is named, with what was given."""
    said = await refused("--broker-port", "0", "--data-dir", tmp_path / "data", env={name: value}, code=2)
    assert name.removeprefix("RUNSTREAM_").lower() in said.lower()
    assert value in said


async def test_flag_over_environment_over_default(tmp_path: Path) -> None:
    """The environment stands in for a default, and a flag for the environment."""
    from_environment, from_flag = free_ports(2)
    env = {**SOURCE, "RUNSTREAM_PORT": str(from_environment), "RUNSTREAM_BROKER_PORT": "0", "RUNSTREAM_AGENT": "nobody"}
    for args, port in (((), from_environment), (("--port", str(from_flag)), from_flag)):
        async with running(*runstream("up", "--agent", "demo", *args), env=env, cwd=tmp_path) as process:
            await process.wait_for_line(f"^ready http://127.0.0.1:{port}$")
            # The data directory is a default: below where it was started.
            assert json.loads((tmp_path / ".runstream" / "endpoints.json").read_text())["gateway"].endswith(f":{port}")
            assert await ends(process, signal.SIGTERM) == 0
    said = await refused("--port", "0", env=env, cwd=tmp_path, code=2)
    assert "'nobody'" in said


async def test_started_as_a_module_it_names_commands_that_work(tmp_path: Path) -> None:
    """What it shows to try begins as it was started, where no search path has it."""
    argv = [sys.executable, "-m", "runstream.gateway", "up", *FREE_PORTS, "--data-dir", str(tmp_path)]
    async with running(*argv, env={**SOURCE, "PATH": "/usr/bin:/bin"}) as process:
        await process.wait_for_line("^ready ")
        tail = f"{shlex.join(argv[:3])} tail RUN_ID"
        await wait_until(lambda: any(tail in line for line in process.errors), 5, "it is not named")
        assert await ends(process, signal.SIGTERM) == 0


async def test_ipv6(tmp_path: Path) -> None:
    """An IPv6 address is listened on, and written as URLs write it."""
    async with up(tmp_path / "data", "--host", "::1") as served:
        assert re.fullmatch(r"http://\[::1\]:\d+", served.base)
        assert (await health(served.base, "/readyz")).status == 200


async def test_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """Whoever does not want to wait for an end in order says so again."""
    async with up(tmp_path / "data") as served:
        os.kill(served.nats_pid, signal.SIGSTOP)
        family = descendants(served.process.pid)
        served.process.send_signal(signal.SIGTERM)
        await wait_until(lambda: any("stopping" in line for line in served.process.errors), 5, "it does not stop")
        served.process.send_signal(signal.SIGTERM)
        assert await served.process.wait(1) == 128 + signal.SIGTERM
        await wait_until(lambda: not [pid for pid in family if alive(pid)], 2, "a child is left")


async def test_it_ends_though_nobody_reads_its_logs(tmp_path: Path) -> None:
    """A terminal or a log collector that has gone takes the logs with it, and nothing else."""
    argv = shlex.join(runstream("up", *FREE_PORTS, "--data-dir", tmp_path / "data"))
    async with running("bash", "-c", f"exec {argv} 2> >(true)", env=SOURCE) as process:
        await process.wait_for_line("^ready ")
        assert await ends(process, signal.SIGTERM) == 0


async def test_other_nats_is_used(tmp_path: Path, nats_url: str) -> None:
    """With a NATS that is there already none is embedded, and nothing of it is stopped at the end."""
    async with up(tmp_path / "data", "--nats-url", nats_url) as served:
        assert served.endpoints["nats"] == nats_url
        assert descendants(served.process.pid) == []
        async with served.create(chunks=2, interval_ms=0) as stream:
            events = await stream.rest()
        served.process.send_signal(signal.SIGTERM)
        assert await served.process.wait(soon()) == 0
    async with up(tmp_path / "data", "--nats-url", nats_url) as served:
        assert await events_of(served.base, f"/v1/runs/{events[0].json['run_id']}/stream") == events


def test_installed_command_is_this_one() -> None:
    """The script that an installation makes calls what these tests start as a module."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert pkgutil.resolve_name(scripts["runstream"]) is main
