"""`runstream doctor` finds each thing that can be wrong, says what to do about it, and is 1 then."""

import contextlib
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytest_asyncio

from runstream.broker.connection import Connection
from runstream.broker.embedded import find_binary
from runstream.broker.errors import Unavailable, WrongLastSequence
from runstream.broker.jetstream import JetStream
from runstream.broker.settings import BrokerSettings
from runstream.gateway import diagnosis
from runstream.gateway.diagnosis import Finding, Role
from runstream.gateway.provisioning import provision_once
from tests.security.nats import guarded_nats
from tests.support.commands import Done, done
from tests.support.nats import NatsServer, free_ports
from tests.support.processes import running
from tests.support.waiting import wait_until

ROLES: tuple[Role, ...] = ("gateway", "broker", "writer", "provision")


@pytest_asyncio.fixture
async def jetstream(nats_server: NatsServer) -> AsyncIterator[JetStream]:
    """A connection of the test's own to a server that has just been provisioned."""
    await nats_server.wait_ready()
    async with Connection(nats_server.url, name="test") as connection:
        opened = JetStream(connection, timeout_seconds=2)
        for name in (await opened.api("STREAM.NAMES", None))["streams"] or []:
            await opened.api(f"STREAM.DELETE.{name}", None)
        await provision_once(BrokerSettings(nats_url=nats_server.url), rebuild_index=False, tell=lambda _: None)
        yield opened
        await opened.close()


def problems(looked: Done) -> list[dict[str, str]]:
    """What is wrong, after a check that each problem says what to do, and that the exit code tells of it."""
    findings: list[dict[str, str]] = json.loads(looked.lines[0])
    found = [finding for finding in findings if finding["state"] == "problem"]
    assert looked.code == (1 if found else 0), looked
    assert all(finding["do"] for finding in found)
    return found


async def looked(url: str, *args: str, **env: str) -> list[dict[str, str]]:
    return problems(await done("doctor", "--json", "--nats-url", url, *args, env=env))


async def found_by(settings: BrokerSettings, role: Role) -> list[Finding]:
    """What is wrong, without a process of its own."""
    return [finding async for finding in diagnosis.diagnose(settings, role) if finding.state == "problem"]


@pytest.mark.usefixtures("jetstream")
async def test_where_nothing_is_wrong_everything_was_looked_at(nats_url: str) -> None:
    """Each check is named, for people in a line each, and the exit code is 0."""
    healthy = await done("doctor", "--nats-url", nats_url)
    assert healthy.code == 0
    checks = ["nats", "version", "permissions", "configuration", "clock", "storage", "latency"]
    assert [line.split()[1] for line in healthy.lines] == [f"{check}:" for check in checks]
    assert all(line.startswith("ok ") for line in healthy.lines)


async def test_it_changes_nothing(nats_url: str, jetstream: JetStream) -> None:
    """It leaves no message in a log or on the queue, and in the index one that a broker sweeps."""
    for role in ROLES:
        assert await found_by(BrokerSettings(nats_url=nats_url), role) == []
    for name, expected in {"RUNS_0": 0, "RUNSTREAM_WORK": 0, "KV_RUNSTREAM": 1}.items():
        assert (await jetstream.api(f"STREAM.INFO.{name}", None))["state"]["messages"] == expected
    assert await jetstream.last_message("KV_RUNSTREAM", "$KV.RUNSTREAM.pulse.doctor") is not None


async def test_nats_away_is_found() -> None:
    """Where it was looked for is said."""
    (port,) = free_ports(1)
    (found,) = await looked(f"nats://127.0.0.1:{port}")
    assert found["check"] == "nats"
    assert found["says"] == f"Cannot reach NATS at nats://127.0.0.1:{port}: connection refused."


async def test_a_setting_that_is_wrong_is_found() -> None:
    """Nothing else is looked at, as it would be looked at in the wrong place."""
    (found,) = await looked("http://nats")
    assert found["check"] == "settings"
    shown = await done("doctor", "--nats-url", "http://nats")
    assert shown.code == 1
    assert shown.lines[0].startswith("problem  settings: ")


async def test_jetstream_that_is_off_is_found(tmp_path: Path) -> None:
    """A plain nats-server answers, and stores nothing."""
    (port,) = free_ports(1)
    async with running(str(find_binary()), "-a", "127.0.0.1", "-p", str(port), cwd=tmp_path) as server:
        await wait_until(lambda: any("Server is ready" in line for line in server.errors), 20)
        url = f"nats://127.0.0.1:{port}"
        found = await looked(url)
        assert [each["check"] for each in found] == ["jetstream"]
        assert "JetStream is off" in found[0]["says"]
        refused = await done("provision", "--nats-url", url)
    assert refused.code == 3
    assert "JetStream is off in this NATS, or for this account. Switch it on: " in refused.complaint
    assert "$JS.API" not in found[0]["says"] + refused.complaint


@pytest.mark.parametrize("role", ROLES)
async def test_streams_that_are_absent_are_found(nats_url: str, jetstream: JetStream, role: Role) -> None:
    """Each by its name, and as nothing else: that nobody answers for it is not NATS's fault."""
    for name in ("RUNS_0", "RUNSTREAM_WORK"):
        await jetstream.api(f"STREAM.DELETE.{name}", None)
    found = await looked(nats_url, "--role", role)
    assert [each["check"] for each in found] == ["streams"] * 3
    for each, name in zip(found, ("RUNS_0", "RUNSTREAM_WORK", "RUNSTREAM_WORK consumer workers"), strict=True):
        assert each["says"] == f"{name} is absent."
        assert "runstream provision" in each["do"]


async def test_a_stream_that_does_not_answer_is_not_taken_for_nats(
    jetstream: JetStream, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has been let in is not told to start nats-server."""
    del jetstream

    async def silent(*_: object) -> None:
        raise Unavailable("$JS.API.STREAM.INFO.RUNS_0: timeout")

    monkeypatch.setattr(diagnosis, "plan_streams", silent)
    (found,) = await found_by(BrokerSettings(nats_url=nats_url), "gateway")
    assert (found.check, found.do.startswith("Repeat it")) == ("jetstream", True)
    assert "RUNS_0: timeout" in found.says


@pytest.mark.usefixtures("jetstream")
async def test_a_configuration_that_has_drifted_is_found(nats_url: str) -> None:
    """Each difference, with both values; --apply mends it."""
    settings = {"RUNSTREAM_RETENTION": "2h", "RUNSTREAM_LEASE_SECONDS": "5"}
    found = await looked(nats_url, **settings)
    assert [each["check"] for each in found] == ["configuration"] * 3
    assert "RUNS_0.max_age is 24h, this configuration says 2h" in found[0]["says"]
    assert (await done("provision", "--apply", "--nats-url", nats_url, env=settings)).code == 0
    assert await looked(nats_url, **settings) == []


async def test_storage_that_fills_is_found(nats_url: str, jetstream: JetStream) -> None:
    """Before a stream is full, and when it is."""
    info = (await jetstream.api("STREAM.INFO.RUNS_0", None))["config"]
    await jetstream.api("STREAM.UPDATE.RUNS_0", {**info, "max_bytes": 100_000})
    await jetstream.publish("runs.0.x", b"x" * 95_000, {})
    (found,) = await looked(nats_url, RUNSTREAM_MAX_LOG_BYTES="100000")
    assert (found["check"], found["says"].startswith("RUNS_0 holds 95")) == ("storage", True)
    index = (await jetstream.api("STREAM.INFO.KV_RUNSTREAM", None))["config"]
    await jetstream.api("STREAM.UPDATE.KV_RUNSTREAM", {**index, "max_bytes": 10})
    full = await looked(nats_url, RUNSTREAM_MAX_LOG_BYTES="100000")
    assert any(each["says"].startswith("Nothing more is stored") for each in full)


async def test_what_a_user_of_nats_may_not_do_is_found(tmp_path: Path) -> None:
    """With the configuration that is shipped each role is fine; one with another's key lacks what it needs."""
    async with guarded_nats(tmp_path) as server:
        await provision_once(server.settings("provision"), rebuild_index=False, tell=lambda _: None)
        for role in ROLES:
            assert await found_by(server.settings(role), role) == []
        (found,) = await found_by(server.settings("writer", nats_inbox_prefix="_INBOX_writer"), "gateway")
        assert found.check == "permissions"
        for missing in ("publish work.doctor.doctor", "publish $KV.RUNSTREAM.ticket.doctor", "subscribe live.>"):
            assert missing in found.says
        assert "publish runs.0.doctor" not in found.says
        nobody = BrokerSettings(nats_url=server.url, nats_ca=server.ca)
        (found,) = await found_by(nobody, "gateway")
        assert (found.check, "does not let this user in" in found.says) == ("nats", True)
        assert found.do.startswith("Name a user that it knows: ")


# -- what no test can make of a real server ---------------------------------------------------------------------------


class Server:
    """A JetStream that answers as the test says: old, slow, behind."""

    def __init__(self, *, version: tuple[int, int, int] = (2, 12, 0), slow: float = 0, **info: Any) -> None:
        self.connection = SimpleNamespace(server_version=version, max_payload=2**20)
        self._slow = slow
        self._info = {"state": {"bytes": 0}, "config": {"max_bytes": -1}, **info}

    async def api(self, call: str, _: object) -> dict[str, Any]:
        if call == "INFO":
            return {"storage": 90, "limits": {"max_storage": 100}}
        return self._info

    async def publish_batch(self, *_: object) -> int:
        return 1

    async def publish(self, *_: object) -> int:
        began = time.perf_counter()
        with contextlib.suppress(WrongLastSequence):
            await wait_until(lambda: time.perf_counter() - began > self._slow)
        return 1

    @property
    def jetstream(self) -> JetStream:
        return cast("JetStream", self)


def test_a_server_that_is_too_old_is_found() -> None:
    """Its version and the one that is needed are said."""
    found = diagnosis._version(Server(version=(2, 11, 9)).jetstream)
    assert (found.state, "2.11.9" in found.says, "2.12.0" in found.says) == ("problem", True, True)


@pytest.mark.parametrize(("ahead", "says"), [(30.0, "30.0 s ahead of"), (-30.0, "30.0 s behind"), (0.5, "")])
def test_clocks_that_differ_are_found(ahead: float, says: str) -> None:
    """By more than the answer took, and than matters."""
    now = 1_700_000_000.0
    told = {"ts": datetime.fromtimestamp(now + ahead, tz=UTC).isoformat()}
    found = diagnosis._clock(told, now - 0.01, now + 0.01)
    assert (found.state, says in found.says) == ("problem" if says else "fine", True)


def test_what_an_answer_took_is_a_part_of_how_far_clocks_may_be_apart() -> None:
    """It was written down at any moment of that."""
    now = 1_700_000_000.0
    told = {"ts": datetime.fromtimestamp(now, tz=UTC).isoformat()}
    assert diagnosis._clock(told, now - 0.3, now + 0.5).says == "500 ms from nats-server's, at most"


async def test_a_store_that_is_slow_is_found() -> None:
    """What storing takes is said."""
    found = await diagnosis._latency(Server(slow=0.15).jetstream)
    assert (found.state, found.check) == ("problem", "latency")


async def storage_of(server: Server) -> list[Finding]:
    return await diagnosis._storage(server.jetstream, BrokerSettings())


async def test_replicas_that_are_behind_and_accounts_that_fill_are_found() -> None:
    """Each replica by its name."""
    behind = {"replicas": [{"name": "nats-2", "current": False}, {"name": "nats-3", "current": True}]}
    found = await storage_of(Server(cluster=behind))
    assert [each.check for each in found] == ["replicas"] * 4 + ["storage"]
    assert found[0].says == "RUNS_0 is behind on nats-2."
    assert found[-1].says == "The account holds 90 of the 100 bytes it may."
