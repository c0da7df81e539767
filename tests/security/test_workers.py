"""A worker that asks a platform in its clients' names is given what they have for it, and no more."""

import contextlib
from pathlib import Path

from runstream.broker.agents.loading import agent_source
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.auth.authenticator import authenticating
from runstream.broker.service import Broker
from runstream.broker.settings import BrokerSettings
from runstream.gateway.app import Gateway
from runstream.gateway.settings import GatewaySettings
from runstream.schemas import new_agent_id
from tests.support.auth import Client, KeyFile
from tests.support.http import open_stream
from tests.support.stack import listener, message, url_of
from tests.support.upstream import DONE, event, plays, upstream_running

THEIRS = {"X-BARE-PASSWORD": "password theirs", "user_id": "user-00000000-0000-4000-8000-000000000000"}


async def test_a_worker_is_not_told_either(nats_url: str, tmp_path: Path) -> None:
    """An agent's platform gets what the client has for it, and not what admitted the client here."""
    keys = KeyFile(tmp_path / "keys")
    client = Client("", keys.add())
    async with (
        upstream_running(plays([event({"a": 1}), DONE])) as platform,
        authenticating(keys.settings) as authenticator,
        contextlib.AsyncExitStack() as stack,
    ):
        source = agent_source(f"{platform.url}/chat", UpstreamSettings(auth="forward"))
        broker = BrokerSettings(nats_url=nats_url)
        agent = await stack.enter_async_context(source.open(broker))
        await stack.enter_async_context(Broker(broker, agent=agent, forwards_credentials=source.forwards_credentials))
        bound = stack.enter_context(listener())
        await stack.enter_async_context(Gateway(GatewaySettings(), broker, listener=bound, authenticator=authenticator))
        for theirs in (THEIRS, {}):
            headers = {**client.headers, **theirs}
            path = f"/v1/agents/{new_agent_id()}/messages/stream"
            async with open_stream(url_of(bound), path, message("hello"), headers=headers) as stream:
                assert (await stream.rest())[-1].is_done
            asked = platform.asked[-1]
            assert asked.headers.get("x-bare-password") == theirs.get("X-BARE-PASSWORD")
            assert str(client.credential) not in str(asked)
