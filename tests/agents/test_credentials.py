"""What the platform is told of who asks: nothing, a token from a file, or what the client said; stored nowhere."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runstream.broker.agents.loading import agent_source
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.connection import Connection
from runstream.broker.credentials import credentials_of
from runstream.broker.errors import AgentFailed, InvalidAgent
from runstream.broker.service import Broker
from runstream.broker.settings import BrokerSettings
from runstream.gateway.app import Gateway
from runstream.gateway.settings import GatewaySettings
from runstream.schemas import ERROR_TYPES, RunRequest, new_agent_id, new_run_id
from tests.support.core import core_running
from tests.support.http import open_stream
from tests.support.stack import listener, url_of
from tests.support.upstream import DONE, Upstream, event, plays, upstream_running

PATH = f"/v1/agents/{new_agent_id()}/messages/stream"
CLIENT = {"Authorization": "Bearer the-clients-own", "X-BARE-PASSWORD": "password open sesame", "Cookie": "a=b"}


@contextlib.asynccontextmanager
async def serving(nats_url: str, **settings: Any) -> AsyncIterator[tuple[Upstream, str]]:
    """A platform, and a runstream in front of it that was told what to say of who asks; the gateway's URL."""
    async with upstream_running(plays([event({"a": 1}), DONE])) as upstream, contextlib.AsyncExitStack() as stack:
        source = agent_source(f"{upstream.url}/chat", UpstreamSettings(**settings))
        broker = BrokerSettings(nats_url=nats_url)
        agent = await stack.enter_async_context(source.open(nats_url))
        await stack.enter_async_context(Broker(broker, agent=agent, forwards_credentials=source.forwards_credentials))
        bound = stack.enter_context(listener())
        await stack.enter_async_context(Gateway(GatewaySettings(), broker, listener=bound))
        yield upstream, url_of(bound)


async def answered(url: str, **body: object) -> list[str]:
    async with open_stream(url, PATH, {"input": "hello", "background": True, **body}, headers=CLIENT) as stream:
        return [shown.data for shown in await stream.rest()]


async def test_nothing_is_said_unless_told(nats_url: str) -> None:
    """A client's credential is for runstream: the platform does not see it."""
    async with serving(nats_url) as (upstream, url):
        await answered(url)
        assert not {"authorization", "x-bare-password", "cookie"} & set(upstream.asked[0].headers)


async def test_a_token_is_read_from_its_file_for_each_run(nats_url: str, tmp_path: Path) -> None:
    """A secret that is rotated is used from the next run on, and a client cannot replace it."""
    secret = tmp_path / "token"
    secret.write_text("first\n")
    async with serving(nats_url, auth=str(secret)) as (upstream, url):
        await answered(url)
        secret.write_text("second\n")
        await answered(url)
        secret.unlink()
        failed = await answered(url)
    assert [request.headers["authorization"] for request in upstream.asked] == ["Bearer first", "Bearer second"]
    assert "cannot be read: No such file" in failed[-2]


async def test_the_clients_own_is_forwarded_and_stored_nowhere(nats_url: str) -> None:
    """The platform sees what the client sent; no file of the store does."""
    async with serving(nats_url, auth="forward") as (upstream, url):
        await answered(url)
    headers = upstream.asked[0].headers
    assert headers["authorization"] == CLIENT["Authorization"]
    assert headers["x-bare-password"] == CLIENT["X-BARE-PASSWORD"]
    assert "cookie" not in headers
    async with core_running(nats_url) as core:
        for stream in ("RUNS_0", "KV_RUNSTREAM", "RUNSTREAM_WORK"):
            last = (await core.jetstream.api(f"STREAM.INFO.{stream}", None))["state"]
            for seq in range(last["first_seq"], last["last_seq"] + 1):
                stored = await core.jetstream.message_at(stream, seq)
                assert "the-clients-own" not in str(stored)
                assert "open sesame" not in str(stored)


async def test_a_credential_that_went_with_its_gateway_is_said_to_be_lost(nats_url: str) -> None:
    """A run that waited for a worker longer than its gateway lived fails in words that say what to do."""
    asked = RunRequest(run_id=new_run_id(), agent_id=new_agent_id(), body={}, credentials_from="credentials.gone")
    async with Connection(nats_url, name="test") as connection:
        with pytest.raises(AgentFailed) as lost:
            await credentials_of(asked, connection)
    assert lost.value.error_type == "credential_lost"
    assert "Send the request again" in ERROR_TYPES["credential_lost"].message


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read: No such file"),
        (b"", "must hold one bearer token"),
        (b"two words", "must hold one bearer token"),
        ("naïve".encode(), "cannot be read: it is not ASCII text"),
    ],
)
def test_a_file_without_a_token_is_refused_at_the_start(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    """Not when the first run comes."""
    secret = tmp_path / "token"
    if content is not None:
        secret.write_bytes(content)
    with pytest.raises(InvalidAgent, match=complaint):
        agent_source("http://platform:8283", UpstreamSettings(auth=str(secret)))
