"""What the platform is told of who asks: nothing, a token from a file, or what the client said; stored nowhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from runstream.broker.agents.loading import agent_source
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.embedded import EmbeddedServer
from runstream.broker.errors import InvalidSettings
from runstream.broker.service import Broker
from runstream.broker.settings import BrokerSettings
from runstream.gateway.app import Gateway
from runstream.gateway.settings import GatewaySettings
from runstream.schemas import new_agent_id
from tests.support.core import core_running
from tests.support.http import fetch, open_stream
from tests.support.stack import listener, message, url_of
from tests.support.upstream import DONE, Exchange, Script, Upstream, event, plays, upstream_running
from tests.support.waiting import wait_until

PATH = f"/v1/agents/{new_agent_id()}/messages/stream"
CLIENT = {"Authorization": "Bearer the-clients-own", "X-BARE-PASSWORD": "password open sesame", "Cookie": "a=b"}
SECRETS = ("the-clients-own", "open sesame")
ANSWER = plays([event({"a": 1}), DONE])


@contextlib.asynccontextmanager
async def serving(nats_url: str, script: Script = ANSWER, **settings: Any) -> AsyncIterator[tuple[Upstream, str]]:
    """A platform, and a runstream in front of it that was told what to say of who asks; the gateway's URL."""
    async with upstream_running(script) as upstream, contextlib.AsyncExitStack() as stack:
        source = agent_source(f"{upstream.url}/chat", UpstreamSettings(**settings))
        broker = BrokerSettings(nats_url=nats_url)
        agent = await stack.enter_async_context(source.open(broker))
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
        with capture_logs() as logs:
            failed = await answered(url)
    assert [request.headers["authorization"] for request in upstream.asked] == ["Bearer first", "Bearer second"]
    # Where it should have been is the operator's business.
    assert "The platform's credential cannot be read." in failed[-2]
    assert str(secret) not in str(failed)
    assert [str(secret) in line["error"] for line in logs if line["event"] == "upstream_auth_unreadable"] == [True]


async def test_the_clients_own_is_forwarded_and_stored_nowhere(tmp_path: Path) -> None:
    """The platform sees what the client sent; no message and no file of the store does, neither now nor later."""
    go = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await go.wait()
        await exchange.say(event({"a": 1}), DONE)
        await exchange.end()

    async with EmbeddedServer(tmp_path) as server, serving(server.url, script, auth="forward") as (upstream, url):
        asking = asyncio.create_task(answered(url, input="what was asked"))
        await wait_until(lambda: upstream.asked)
        headers = upstream.asked[0].headers
        assert headers["authorization"] == CLIENT["Authorization"]
        assert headers["x-bare-password"] == CLIENT["X-BARE-PASSWORD"]
        assert "cookie" not in headers
        # The request is stored for as long as its run lives: what went with it would be found, too.
        assert "what was asked" in await everything_stored(server.url)
        await wait_until(lambda: "what was asked" in everything_in(tmp_path))
        live = await everything_stored(server.url) + everything_in(tmp_path)
        go.set()
        await asking
        ended = await everything_stored(server.url) + everything_in(tmp_path)
    assert not [secret for secret in SECRETS if secret in live + ended]


async def everything_stored(nats_url: str) -> str:
    """Every message that the store has, with its headers."""
    found = []
    async with core_running(nats_url) as core:
        for stream in ("RUNS_0", "KV_RUNSTREAM", "RUNSTREAM_WORK"):
            state = (await core.jetstream.api(f"STREAM.INFO.{stream}", None))["state"]
            for seq in range(state["first_seq"], state["last_seq"] + 1):
                found.append(str(await core.jetstream.message_at(stream, seq)))  # noqa: PERF401
    return "\n".join(found)


def everything_in(directory: Path) -> str:
    """What all files below a directory have in them; what goes while it is read was not there."""
    found = []
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found += [path.read_bytes().decode(errors="replace")] if path.is_file() else []
    return "\n".join(found)


async def test_a_client_that_sent_none_is_nobody(nats_url: str) -> None:
    """Its run is asked for without one: that is for the platform to refuse."""
    async with serving(nats_url, auth="forward") as (upstream, url), open_stream(url, PATH, message("hello")) as stream:
        assert (await stream.rest())[1].json["a"] == 1
    assert "authorization" not in upstream.asked[0].headers


async def test_a_credential_that_is_no_text_is_refused(nats_url: str) -> None:
    """What no platform could be told is said at once, and no run is started; it is not shown."""
    async with serving(nats_url, auth="forward") as (_, url):
        refused = await fetch(url, "POST", PATH, json=message("hello"), headers={"Authorization": "Bearer hunter2é"})
    detail = "INVALID_ARGUMENT: The header Authorization has to be printable ASCII."
    assert (refused.status, refused.json) == (400, {"detail": detail})


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
    with pytest.raises(InvalidSettings, match=complaint):
        agent_source("http://platform:8283", UpstreamSettings(auth=str(secret)))
