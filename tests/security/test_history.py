"""Two tenants hammer the same otids, conversations and agents: the checker of histories proves that nothing crosses.

`make tenants` does so for as long as it is told, with another seed each time.
"""

import contextlib
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from runstream.broker.auth.authenticator import authenticating
from runstream.gateway.app import Gateway
from runstream.gateway.settings import GatewaySettings
from tests.chaos.agent import speak
from tests.chaos.checker import Checker
from tests.chaos.content import content_of, digest_of, read
from tests.chaos.history import Connected, Got, Joined, Opened, Opening, Recorder, Said, Stored, now
from tests.chaos.verdict import Rule, Verdict
from tests.security.tenants import CHUNKS, READERS, Tenant, hammer, lanes
from tests.support.auth import Issuer
from tests.support.nats import NatsServer
from tests.support.stack import listener, stack_running, url_of

TENANTS = ("acme", "other")
LANES = 3
ROUNDS = 3
SECONDS = float(os.environ.get("RUNSTREAM_TENANTS_SECONDS", "0"))
"""How long it is done again and again; 0: once."""
SEED = int(os.environ.get("RUNSTREAM_TENANTS_SEED", "7"))


class World:
    """Two gateways and a broker, with an agent that says what it is asked for."""

    def __init__(self, gateways: list[str], broker: str) -> None:
        self.gateways, self.broker = gateways, broker

    async def played(self, issuer: Issuer, directory: Path, seed: int) -> tuple[Verdict, tuple[Tenant, Tenant]]:
        """Let both tenants play, and check what they have recorded."""
        with Recorder(directory, "writer", "w") as writes, Recorder(directory, "reader", "r") as reads:
            one, other = (
                Tenant(name, issuer.token(tenant=name, exp=2**33), self.gateways, self.broker, (writes, reads))
                for name in TENANTS
            )
            await hammer((one, other), lanes(LANES, ROUNDS), random.Random(seed))
        return Checker().check(directory), (one, other)


@pytest_asyncio.fixture(scope="module")
async def world(
    nats_server: NatsServer, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """A runstream that takes the issuer's tokens."""
    auth = issuer.settings(tmp_path_factory.mktemp("auth"), None, auth_leeway_seconds=0)
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(stack_running(nats_server.url, agent=speak, auth=auth))
        authenticator = await stack.enter_async_context(authenticating(auth))
        bound = stack.enter_context(contextlib.closing(listener()))
        second = Gateway(GatewaySettings(), running.settings, listener=bound, authenticator=authenticator)
        await stack.enter_async_context(second)
        yield World([running.base, url_of(bound)], running.broker_base)


@pytest.mark.timeout(120 + 2 * SECONDS)
async def test_nothing_crosses(world: World, issuer: Issuer, tmp_path: Path) -> None:
    """Each reader is shown all that its own tenant's writer said, in order, and nothing else, whatever is tried."""
    until, number = time.monotonic() + SECONDS, 0
    while number == 0 or time.monotonic() < until:
        seed = SEED + number
        verdict, tenants = await world.played(issuer, tmp_path / str(seed), seed)
        assert not verdict.violations, (seed, verdict.violations)
        assert not [each for tenant in tenants for each in tenant.trespasses], seed
        runs, captured = 2 * LANES * ROUNDS, verdict.figures.readers - 2 * LANES * ROUNDS * READERS
        assert verdict.figures.runs == runs
        assert verdict.figures.readers_to_the_end == verdict.figures.readers
        assert 0 < captured < runs
        assert verdict.figures.endings.keys() <= {"end_turn", "cancelled"}
        assert verdict.figures.deliveries > runs * READERS * CHUNKS / 2
        assert min(tenant.tries for tenant in tenants) > 10
        print(f"seed {seed}: {verdict.figures.deliveries} deliveries, {sum(each.tries for each in tenants)} tries")
        number += 1


@pytest.mark.parametrize("shown", ["other0", "acme1"])
async def test_the_checker_would_notice(tmp_path: Path, shown: str) -> None:
    """A reader that is shown a single chunk of another's run is a violation."""
    with Recorder(tmp_path, "writer", "w") as writes, Recorder(tmp_path, "reader", "r") as reads:
        for token in ("acme0", shown):
            writes.write(Opening(at=now(), token=token, mode="ingest"), Opened(at=now(), token=token, run_id=token))
            writes.write(Said(at=now(), token=token, index=0, digests=[digest_of(content_of(token, 0))]))
            writes.write(Stored(at=now(), token=token, index=0, count=1, sent=now(), last_seq=1))
        reads.write(Joined(at=now(), reader="r-1", token="acme0", kind="letta"))
        reads.write(Connected(at=now(), reader="r-1", gateway="g"))
        seen = read(content_of(shown, 0))
        reads.write(Got(at=now(), reader="r-1", seq=1, token=seen.token, index=0, digest=seen.digest))
    assert Checker().check(tmp_path).count[Rule.FOREIGN] == 1
