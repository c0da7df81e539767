"""The servers that other tests stand on do what their names say."""

import nats
from nats.js.api import StreamConfig

from tests.support.nats import NatsCluster, NatsServer, answers, jetstream_answers
from tests.support.waiting import wait_until

SUBJECT = "kept.1"


async def stored(url: str) -> int:
    """How many messages the stream of these tests has, asked at that server."""
    async with await nats.connect(url, allow_reconnect=False) as connection:
        return (await connection.jetstream().stream_info("KEPT")).state.messages


async def store(url: str, replicas: int) -> None:
    async with await nats.connect(url, allow_reconnect=False) as connection:
        jetstream = connection.jetstream()
        await jetstream.add_stream(StreamConfig(name="KEPT", subjects=["kept.>"], num_replicas=replicas))
        await jetstream.publish(SUBJECT, b"one")


async def test_a_killed_server_comes_back_with_its_messages(nats_server: NatsServer, nats_url: str) -> None:
    """Killed by SIGKILL, stopped and started, paused and resumed: the same url, the same messages."""
    await store(nats_url, replicas=1)
    await nats_server.kill()
    await nats_server.wait_ready()
    assert await stored(nats_url) == 1
    await nats_server.stop()
    assert not await answers(nats_url)
    await nats_server.start()
    assert await stored(nats_url) == 1
    await nats_server.pause()
    assert not await jetstream_answers(nats_url)
    await nats_server.resume()
    await nats_server.wait_ready()
    assert await stored(nats_url) == 1


async def test_a_cluster_survives_one_node(nats_cluster: NatsCluster) -> None:
    """With one node dead the others serve; started again it is part of the cluster; heal mends the rest."""
    await store(nats_cluster.urls[0], replicas=3)
    await nats_cluster.kill(0)
    assert not await answers(nats_cluster.urls[0])
    await nats_cluster.wait_ready()
    assert await stored(nats_cluster.urls[1]) == 1
    await nats_cluster.start(0)
    nats_cluster.pause(1)
    await nats_cluster.stop(2)
    await nats_cluster.heal()
    for url in nats_cluster.urls:
        await wait_until(lambda at=url: jetstream_answers(at), 30, f"{url} does not answer")  # type: ignore[misc]
    assert await stored(nats_cluster.urls[2]) == 1
