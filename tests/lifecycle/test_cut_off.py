"""A leader that is cut off from the others: what it does not have may be there, and nobody is told that it is not."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from runstream.broker.leaders import has_majority
from runstream.broker.topology import INDEX_STREAM
from runstream.schemas import new_conversation_id, new_run_id
from tests.lifecycle.processes import Peer
from tests.lifecycle.scene import scene_running
from tests.support.http import Reply, fetch
from tests.support.nats import NatsCluster
from tests.support.waiting import wait_until

NOTICED_SECONDS = 6.0
"""It is told 404 for two seconds at most; the leader itself would notice after ten."""


class CutOff:
    """A gateway and a broker that know one server, which leads the index, and the others of its cluster."""

    def __init__(self, cluster: NatsCluster, leader: int, gateway: Peer, broker: Peer) -> None:
        self.gateway = gateway
        self.broker = broker
        self._cluster = cluster
        self._others = [number for number in range(3) if number != leader]

    def cut(self) -> None:
        for number in self._others:
            self._cluster.pause(number)

    def mend(self) -> None:
        for number in self._others:
            self._cluster.resume(number)

    async def asked(self) -> dict[str, Reply]:
        """What is said of what is not there."""
        run_id, conversation_id = new_run_id(), new_conversation_id()
        resumed = f"/v1/conversations/{conversation_id}/stream"
        return {
            "run": await fetch(self.gateway.url, "GET", f"/v1/runs/{run_id}"),
            "event source": await fetch(self.gateway.url, "GET", f"/v1/runs/{run_id}/stream"),
            "conversation": await fetch(self.gateway.url, "GET", f"/v1/conversations/{conversation_id}"),
            "resume": await fetch(self.gateway.url, "POST", resumed, json={}),
            "ingest": await fetch(self.broker.url, "POST", f"/ingest/v1/runs/{run_id}/chunks", json=[{"a": 1}]),
        }

    async def statuses(self) -> dict[str, int]:
        return {what: reply.status for what, reply in (await self.asked()).items()}


@pytest_asyncio.fixture
async def cut_off(nats_cluster: NatsCluster, tmp_path: Path) -> AsyncIterator[CutOff]:
    """Healed before and after."""
    await nats_cluster.wait_ready(all_current=True)
    async with scene_running(",".join(nats_cluster.urls), tmp_path, replicas=3) as scene:
        await nats_cluster.wait_ready(all_current=True)
        info = await scene.core.jetstream.api(f"STREAM.INFO.{INDEX_STREAM}", None)
        leader = nats_cluster.names.index(info["cluster"]["leader"])
    async with scene_running(nats_cluster.urls[leader], tmp_path, replicas=3) as scene:
        found = CutOff(nats_cluster, leader, await scene.gateway(), await scene.broker(has_agent=False))
        try:
            yield found
        finally:
            found.mend()
            await nats_cluster.wait_ready(all_current=True)


GONE = {"run": 404, "event source": 404, "conversation": 404, "resume": 400, "ingest": 404}
LATER = {"run": 503, "event source": 200, "conversation": 503, "resume": 503, "ingest": 503}


async def test_nobody_is_sent_away_for_good(cut_off: CutOff) -> None:
    """Two seconds after it has heard of anybody whoever asks is told to come back; once it has, what is not there."""
    assert await cut_off.statuses() == GONE
    cut_off.cut()

    async def is_noticed() -> bool:
        return await cut_off.statuses() == LATER

    await wait_until(is_noticed, NOTICED_SECONDS, "it still says that there is nothing")
    later = await cut_off.asked()
    assert later["run"].headers["retry-after"] == "2"
    assert later["event source"].body.startswith(b"retry: ")
    assert later["ingest"].json["error_type"] == "store_unavailable"
    cut_off.mend()

    async def is_mended() -> bool:
        return await cut_off.statuses() == GONE

    await wait_until(is_mended, 30, "nobody is told what is not there")


def replica(active_seconds: float, *, offline: bool = False) -> dict[str, object]:
    return {"name": "other", "current": True, "offline": offline, "active": int(active_seconds * 1e9)}


@pytest.mark.parametrize(
    ("others", "leads"),
    [
        ([], True),
        ([replica(0.9), replica(0.9)], True),
        ([replica(0.9), replica(60)], True),
        ([replica(0.9), replica(0.9, offline=True)], True),
        ([replica(2.1), replica(2.1)], False),
        ([replica(2.1), replica(0)], False),
        ([replica(0.9, offline=True), replica(2.1)], False),
        ([replica(0.9), replica(9), replica(9), replica(9)], False),
        ([replica(0.9), replica(0.9), replica(9), replica(9)], True),
    ],
)
def test_a_majority(others: list[dict[str, object]], leads: bool) -> None:  # a parameter of the test
    """The leader counts itself, and whoever it has heard of in the last two seconds."""
    assert has_majority({"cluster": {"leader": "one", "replicas": others}}) is leads


def test_a_stream_without_a_cluster() -> None:
    """One server has no other to lose."""
    assert has_majority({"state": {}})
