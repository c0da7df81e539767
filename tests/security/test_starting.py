"""What is served to whom from the start on, as an operator sees it: refusals, keys, and a log without them."""

import os
import socket
import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from runstream.broker.auth.settings import AuthSettings
from runstream.gateway.process import CannotStart, bind, check_elsewhere, check_exposure
from runstream.schemas import new_agent_id
from tests.support.auth import Client, Issuer
from tests.support.nats import NatsServer
from tests.support.processes import running, runstream
from tests.support.services import SOURCE, START_SECONDS, service
from tests.support.stack import message


@pytest.mark.parametrize(("host", "is_open"), [("127.0.0.1", False), ("127.9.9.9", False), ("0.0.0.0", True)])
def test_a_port_that_others_reach_is_not_served_to_anybody(host: str, is_open: bool) -> None:
    """Unless somebody says that this is meant, and then it is logged; or everybody is asked who they are."""
    with socket.create_server((host, 0)) as listener, capture_logs() as logged:
        for auth in ("static", "jwt"):
            check_exposure(listener, AuthSettings(auth=auth))
        if is_open:
            with pytest.raises(CannotStart, match=r"--auth static.*--insecure"):
                check_exposure(listener, AuthSettings())
        else:
            check_exposure(listener, AuthSettings())
        assert logged == []
        check_exposure(listener, AuthSettings(insecure=True))
        assert [(each["event"], each["log_level"]) for each in logged] == [("insecure", "warning")] * is_open


def test_ipv6_has_a_loopback_too() -> None:
    """`::1` is one, `::` is not."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        check_exposure(listener, AuthSettings())
    with socket.create_server(("::", 0), family=socket.AF_INET6) as listener, pytest.raises(CannotStart):
        check_exposure(listener, AuthSettings())


def test_a_port_that_is_taken_leaves_no_socket_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever tries the next port need not wait for a collector."""
    made: list[socket.socket] = []

    class Noted(socket.socket):
        def __init__(self, family: int, kind: int) -> None:
            super().__init__(family, kind)
            made.append(self)

    with socket.create_server(("127.0.0.1", 0)) as taken, monkeypatch.context() as patched:
        patched.setattr(socket, "socket", Noted)
        with pytest.raises(CannotStart, match="cannot be taken"):
            bind("127.0.0.1", taken.getsockname()[1], "port")
    (tried,) = made
    assert tried.fileno() == -1


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
async def test_what_is_no_name_of_a_host_is_told(host: str) -> None:
    """Of one's own in one sentence; a platform's is looked up again for each run, and fails there."""
    with pytest.raises(CannotStart, match=f"The host {host} is not known: it is no name of a host"):
        bind(host, 0, "port")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await check_elsewhere((host, listener.getsockname()[1]), listener)


@pytest.mark.parametrize("command", ["gateway", "broker", "up"])
async def test_each_command_refuses(tmp_path: Path, command: str) -> None:
    """In one line, before anything is begun; nothing of a data directory is left."""
    ports = ["--port", "0", *(["--broker-port", "0"] if command == "up" else []), "--host", "0.0.0.0"]
    async with running(*runstream(command, *ports), env=SOURCE, cwd=tmp_path) as process:
        assert await process.wait(START_SECONDS) == 2
        assert "--insecure" in process.errors[-1]
    assert not [*tmp_path.iterdir()]


async def test_a_log_has_no_credential(nats_server: NatsServer, tmp_path: Path) -> None:
    """Good, bad, expired or in the wrong place, a cookie's or a ticket, at the most talkative level; what `keys token`
    made is let in."""
    issuer = Issuer()
    settings = issuer.settings(tmp_path, None)
    env = {
        "RUNSTREAM_AUTH": "jwt",
        "RUNSTREAM_AUTH_ISSUER": str(settings.auth_issuer),
        "RUNSTREAM_AUTH_AUDIENCE": str(settings.auth_audience),
        "RUNSTREAM_AUTH_SECRET_FILE": str(settings.auth_secret_file),
    }
    made = subprocess.run(
        runstream("keys", "token", "--tenant", "acme", "--scope", "runs:read runs:write platform"),
        env={**os.environ, **SOURCE, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    good = made.stdout.strip()
    sent = [credential for credential in issuer.bad().values() if credential] + [good]
    async with (
        service("broker", nats_server.url, "--agent", "demo", "--log-level", "debug", env=env) as broker,
        service("gateway", nats_server.url, "--log-level", "debug", env=env) as gateway,
    ):
        await broker.is_ready()
        await gateway.is_ready()
        run_id = await Client(gateway.base, good).run(new_agent_id())
        browser = Client(gateway.base, None)
        made_for_browser = await Client(gateway.base, good).fetch("POST", f"/v1/runs/{run_id}/tickets")
        ticket = made_for_browser.json["ticket"]
        for _ in range(2):  # The second time it is used up.
            await browser.fetch("GET", f"/v1/runs/{run_id}/stream?ticket={ticket}")
        for credential in sent:
            client = Client(gateway.base, credential)
            await browser.fetch("GET", f"/v1/runs/{run_id}/stream", headers={"Cookie": f"runstream_token={credential}"})
            await client.fetch("GET", f"/v1/runs/{run_id}/stream")
            await client.fetch("GET", f"/v1/runs/?token={credential}")
            await client.fetch("POST", f"/v1/agents/{new_agent_id()}/messages/stream", json=message({"chunks": -1}))
            await client.fetch("GET", "/v1/nothing", headers={"Authorization": credential})
            await Client(broker.base, credential).fetch("POST", "/ingest/v1/runs", json={})
        said = "\n".join(broker.process.errors + gateway.process.errors)
    assert "ready" in said
    for credential in [*sent, ticket]:
        for part in credential.split("."):
            assert len(part) < 12 or part not in said


def test_a_key_is_shown_once(tmp_path: Path) -> None:
    """The line that is for the file has its hash, and nothing of it."""
    made = subprocess.run(
        runstream("keys", "new", "--tenant", "acme", "--scope", "runs:read runs:cancel"),
        env={**os.environ, **SOURCE},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    key = made.stderr.split()[-1]
    assert key.startswith("rsk_")
    assert key.split("_", 2)[2] not in made.stdout
    (tmp_path / "keys").write_text(made.stdout)
    assert made.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["new", "--scope", "runs:everything"], "runs:everything"),
        (["new", "--tenant", "a.b"], "tenant"),
        (["token"], "RUNSTREAM_AUTH_SECRET_FILE"),
    ],
    ids=str,
)
def test_what_no_credential_may_say_is_refused(arguments: list[str], complaint: str) -> None:
    """In one line."""
    made = subprocess.run(
        runstream("keys", *arguments), env={**os.environ, **SOURCE}, capture_output=True, text=True, check=False
    )
    assert (made.returncode, made.stdout) == (2, "")
    assert complaint in made.stderr
    assert "Traceback" not in made.stderr
