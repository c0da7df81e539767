"""The image is built from the Dockerfile as it is, says of itself what it should, and serves from a read-only root."""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.deploy import image
from tests.deploy.chart import CHART
from tests.deploy.tools import ROOT
from tests.support.nats import free_ports
from tests.support.processes import running
from tests.support.services import Service

BUILD_SECONDS = 900

TRIES = """
import json, pathlib
def fails(path):
    try:
        pathlib.Path(path, "x").write_text("")
    except OSError as error:
        return error.errno
print(json.dumps([fails(path) for path in ("/", "/data", "/opt/runstream", "/tmp")]))
"""


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """The root of the image, freshly built."""
    image.build()
    with image.root() as directory:
        yield directory


@pytest.mark.timeout(BUILD_SECONDS)
def test_the_image_says_what_it_is(root: Path) -> None:
    """It runs as nobody's user, drains when stopped, is looked after, and has its labels."""
    assert root.exists()
    config = image.config()
    uid, _, gid = config["User"].partition(":")
    assert int(uid) >= 10_000
    assert int(gid) >= 10_000
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert set(config["ExposedPorts"]) == {"8283/tcp", "8284/tcp"}
    assert {name.rpartition(".")[2] for name in config["Labels"] if name.startswith("org.opencontainers.image.")} >= {
        "title",
        "description",
        "licenses",
        "version",
        "revision",
    }


@pytest.mark.timeout(BUILD_SECONDS)
def test_the_image_has_no_more_than_it_needs(root: Path) -> None:
    """Of what the build added nothing is left but the packages that the lock names, and their byte code is there."""
    environment = root / "opt" / "runstream"
    (packages,) = environment.glob("lib/python3.*/site-packages")
    names = {re.split(r"-\d", path.name)[0].replace("_", "-").lower() for path in packages.glob("*.dist-info")}
    lock = (ROOT / "requirements-image.lock").read_text(encoding="utf-8")
    locked = {name.replace("_", "-").lower() for name in re.findall(r"^([\w.-]+)==", lock, flags=re.MULTILINE)}
    assert names == {*locked, "runstream"}
    for compiler in ("gcc", "cc", "c++", "ld", "make"):
        assert not [path for folder in ("usr/bin", "usr/local/bin", "bin") for path in (root / folder).glob(compiler)]
    assert not (root / "src").exists()
    assert [*packages.glob("runstream/gateway/__pycache__/cli.*.pyc")]
    owned = {os.lstat(path).st_uid for path in environment.rglob("*")}
    assert owned == {0}, "the image's user must not be able to change what it runs"


@pytest.mark.timeout(BUILD_SECONDS)
async def test_a_stream_runs_through_it(root: Path, nats_url: str) -> None:
    """As its own user, in a root that cannot be written, a broker and a gateway store, stream and resume a run, are
    healthy, and end well when told to stop."""
    metrics = free_ports(2)
    settings = {"RUNSTREAM_NATS_URL": nats_url, "RUNSTREAM_HOST": "127.0.0.1", "RUNSTREAM_DRAIN_SECONDS": "0"}
    entrypoint = image.config()["Entrypoint"]
    services: dict[str, Service] = {}
    async with AsyncExitStack() as stack:
        for kind, metrics_port in zip(("broker", "gateway"), metrics, strict=True):
            (port,) = free_ports(1)
            ports = {"RUNSTREAM_PORT": str(port), "RUNSTREAM_BROKER_PORT": str(port)}
            env = {**settings, **ports, "RUNSTREAM_METRICS_PORT": str(metrics_port)}
            argv = image.contained(root, *entrypoint, kind, env=env, shared=CHART / "files")
            process = await stack.enter_async_context(running(*argv))
            services[kind] = Service(process, port)
        for each in services.values():
            await each.is_ready()
            status = Path(f"/proc/{each.process.pid}/status").read_text(encoding="utf-8")
            assert re.search(r"^Uid:\s+10001\s+10001\s", status, flags=re.MULTILINE)
            await ends_well(root, *image.config()["Healthcheck"]["Test"][1:], RUNSTREAM_PORT=str(each.port))
        said = await ends_well(
            root, "python", "/mnt/check.py", GATEWAY_URL=services["gateway"].base, BROKER_URL=services["broker"].base
        )
        assert "none is missing, none was seen twice" in said[0]
        for each in services.values():
            each.process.send_signal(signal.SIGTERM)
            assert await each.process.wait() == 0, each.process.report()
        (port,) = free_ports(1)
        argv = image.contained(
            root, *image.config()["Healthcheck"]["Test"][1:], env={"RUNSTREAM_PORT": str(port)}, shared=CHART / "files"
        )
        async with running(*argv) as unhealthy:
            assert await unhealthy.wait() == 1, unhealthy.report()


@pytest.mark.timeout(BUILD_SECONDS)
async def test_its_root_cannot_be_written(root: Path) -> None:
    """The test above runs in a root as Kubernetes gives it: else it would say nothing."""
    (said,) = await ends_well(root, "python", "-c", TRIES)
    read_only = 30
    assert json.loads(said) == [read_only, read_only, read_only, None]


async def ends_well(root: Path, *command: str, **env: str) -> list[str]:
    """What a command in the image says, that ends with 0."""
    async with running(*image.contained(root, *command, env=env, shared=CHART / "files")) as process:
        assert await process.wait(30) == 0, process.report()
        return process.lines
