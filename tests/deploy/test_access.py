"""What the chart tells its pods is what NATS and clients ask for: services run with it, and others are turned away."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from runstream.broker.auth.static import new_key
from tests.deploy.chart import CHART, Object, of_kind, pods, with_values
from tests.security.nats import GuardedNats, guarded_nats
from tests.support.http import fetch
from tests.support.nats import free_ports
from tests.support.processes import python, running, runstream
from tests.support.services import QUICK, SOURCE, Service

MOUNTED = "/etc/runstream/secrets"
START_SECONDS = 30


def values(url: str) -> Object:
    """What somebody says who has a NATS as deploy/nats has it, and keys for clients."""
    return {
        "nats": {"url": url, "nkeys": {"existingSecret": "users"}, "tls": {"existingSecret": "tls"}},
        "auth": {"mode": "static", "existingSecret": "auth"},
        "provision": {"enabled": True},
        "listenAddress": "127.0.0.1",
    }


def told(objects: list[Object], secrets: dict[str, dict[str, str]], directory: Path) -> dict[str, dict[str, str]]:
    """The variables of each of the chart's commands; what it mounts out of Secrets is put below the directory."""
    found: dict[str, dict[str, str]] = {}
    maps = of_kind(objects, "ConfigMap")
    for name, pod in pods(objects):
        if name.startswith("Pod "):
            continue
        (container,) = pod["spec"]["containers"]
        (command,) = container["args"]
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        for mount in container["volumeMounts"]:
            if mount["mountPath"].startswith(MOUNTED):
                place = directory / command / mount["mountPath"].removeprefix(f"{MOUNTED}/")
                place.mkdir(parents=True)
                secret = volumes[mount["name"]]["secret"]
                for item in secret["items"]:
                    (place / item["path"]).write_text(secrets[secret["secretName"]][item["key"]])
        said = {each["name"]: each["value"] for each in container["env"]}
        for source in container["envFrom"]:
            said |= maps[source["configMapRef"]["name"]]["data"]
        found[command] = {name: value.replace(MOUNTED, str(directory / command)) for name, value in said.items()}
    return found


@pytest.fixture
def key() -> tuple[str, str]:
    """A key that may do everything, and the line that the services know it by."""
    key, line = new_key("acme", ["admin"])
    return key, line.decode()


async def test_each_role_signs_in_with_its_own_key(tmp_path: Path, key: tuple[str, str]) -> None:
    """Against the nats-server that is shipped, with TLS and a user for each role: the job makes the streams, with the
    bound that alerts go by, services come up, `helm test` passes with a key, and is turned away without."""
    async with guarded_nats(tmp_path) as nats, AsyncExitStack() as stack:
        environments = told(with_values(values(nats.url)), secrets(nats, key[1]), tmp_path)
        assert environments.keys() == {"provision", "broker", "gateway"}
        assert int(environments["broker"]["RUNSTREAM_MAX_LOG_BYTES"]) > 0
        async with running(*runstream("provision"), env={**SOURCE, **environments["provision"]}) as job:
            assert await job.wait(START_SECONDS) == 0, job.report()
        services: dict[str, Service] = {}
        for command in ("broker", "gateway"):
            port, metrics = free_ports(2)
            ports = {
                "RUNSTREAM_PORT": str(port),
                "RUNSTREAM_BROKER_PORT": str(port),
                "RUNSTREAM_METRICS_PORT": str(metrics),
            }
            env = {**SOURCE, **QUICK, **environments[command], **ports}
            process = await stack.enter_async_context(running(*runstream(command), env=env))
            services[command] = Service(process, port)
            await services[command].is_ready()
            if command == "broker":
                shown = await fetch(f"http://127.0.0.1:{metrics}", "GET", "/metrics")
                assert 'runstream_stream_limit_bytes{stream="RUNS_0"}' in shown.body.decode()
        where = {"GATEWAY_URL": services["gateway"].base, "BROKER_URL": services["broker"].base}
        async with running(*python(CHART / "files" / "check.py"), env={**where, "TOKEN": key[0]}) as check:
            assert await check.wait(START_SECONDS) == 0, check.report()
        async with running(*python(CHART / "files" / "check.py"), env=where) as check:
            assert await check.wait(START_SECONDS) == 1, check.report()
            assert "401" in check.errors[0]


def secrets(nats: GuardedNats, line: str) -> dict[str, dict[str, str]]:
    """The Secrets as deploy/README.md has them made, out of files."""
    roles = ("gateway", "broker", "provision")
    return {
        "users": {f"{role}.nk": nats.key(role).read_text() for role in roles},
        "tls": {"ca.crt": nats.ca.read_text()},
        "auth": {"keys": line},
    }
