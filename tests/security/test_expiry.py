"""What goes on ends when the credential does that it was asked for with, and is gone on with by another."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from runstream.schemas import new_agent_id
from tests.support.auth import Client, Issuer
from tests.support.eventsource import open_source, source_path
from tests.support.http import Connection, Cut
from tests.support.ingest import NDJSON, lines, said
from tests.support.stack import PUPPET, Stack, message, stack_running


async def test_a_stream_ends_with_its_token(stack: Stack, issuer: Issuer) -> None:
    """It says so, without a cursor, and is cut; another token goes on from the last message, and misses nothing."""
    begun = time.time()
    client = Client(stack.base, issuer.token(exp=int(begun) + 2))
    async with client.stream(f"/v1/agents/{new_agent_id()}/messages/stream", message(PUPPET)) as stream:
        (ping,) = await stream.take(1)
        run_id = str(ping.json["run_id"])
        stack.puppet.say(run_id)
        await stream.take(1)
        cursor = stream.cursor
        with pytest.raises(Cut):
            await stream.rest()
        last = stream.seen[-1]
    assert 1 <= time.time() - begun < 6
    assert (last.event, last.json["error_type"], last.json["seq_id"]) == ("error", "credential_expired", None)
    refused = await client.fetch("POST", f"/v1/runs/{run_id}/stream", json={})
    assert (refused.status, refused.json) == (401, {"detail": "Unauthorized"})
    assert 'error_description="The token has expired."' in refused.headers["www-authenticate"]
    stack.puppet.say(run_id)
    stack.puppet.finish(run_id)
    again = Client(stack.base, issuer.token())
    async with again.stream(f"/v1/runs/{run_id}/stream", {"starting_after": cursor}) as stream:
        rest = await stream.rest()
    assert [event.json["content"] for event in rest if event.message_type == "assistant_message"] == ["1 "]
    assert rest[-1].is_done


async def test_a_run_that_ends_before_its_token_ends_well(stack: Stack, issuer: Issuer) -> None:
    """Nothing is left that would cut anything later."""
    client = Client(stack.base, issuer.token(exp=int(time.time()) + 3))
    await client.run(new_agent_id())
    await stack.nobody_follows()


async def test_an_event_source_is_cut_and_refused_when_it_comes_back(stack: Stack, issuer: Issuer) -> None:
    """The refusal is what stops a browser that has no better credential."""
    client = Client(stack.base, issuer.token())
    async with client.stream(f"/v1/agents/{new_agent_id()}/messages/stream", message(PUPPET)) as stream:
        (ping,) = await stream.take(1)
        run_id = str(ping.json["run_id"])
        browser = Client(stack.base, issuer.token(scope="runs:read", run_id=run_id, exp=int(time.time()) + 2))
        async with open_source(stack.base, source_path(run_id), headers=browser.headers) as source:
            with pytest.raises(Cut):
                await source.rest()
            assert not [event for event in source.seen if event.event is not None]
        assert (await browser.fetch("GET", f"/v1/runs/{run_id}/stream")).status == 401
        stack.puppet.finish(run_id)


async def test_an_upload_ends_with_its_token(stack: Stack, issuer: Issuer) -> None:
    """It is answered, with how far it came, and another goes on from there."""
    writer = Client(stack.broker_base, issuer.token(exp=int(time.time()) + 2))
    run_id = (await writer.fetch("POST", "/ingest/v1/runs", json={"agent_id": new_agent_id()})).json["run_id"]
    path = f"/ingest/v1/runs/{run_id}"
    async with Connection.open(stack.broker_base) as connection:
        headers = {**writer.headers, **NDJSON, "Transfer-Encoding": "chunked"}
        await connection.send("POST", f"{path}/chunks", headers=headers)
        data = lines(said(0), said(1))
        await connection.send_raw(b"%x\r\n%b\r\n" % (len(data), data))
        reply = await connection.reply()
    assert (reply.status, reply.json["error_type"], reply.json["index"]) == (401, "unauthorized", 2), reply
    again = Client(stack.broker_base, issuer.token())
    more = await again.fetch("POST", f"{path}/chunks", json=said(2), headers={"Expected-Index": "2"})
    assert more.json["index"] == 3
    assert (await again.fetch("POST", f"{path}/end", json={"stop_reason": "end_turn"})).status == 200


@pytest_asyncio.fixture
async def waiting(nats_url: str, tmp_path: Path) -> AsyncIterator[tuple[Stack, Issuer]]:
    """A runstream whose issuer's keys cannot be fetched."""
    issuer = Issuer(is_down=True)
    async with issuer.serving() as url:
        auth = issuer.settings(tmp_path, url, auth_secret_file=None)
        async with stack_running(nats_url, auth=auth) as running:
            yield running, issuer


async def test_while_nobody_can_say_who_asks(waiting: tuple[Stack, Issuer]) -> None:
    """It is 503, on both ports; a browser is told to come back, as whatever passes must not stop it."""
    stack, issuer = waiting
    token = issuer.token("RS256")
    refused = await Client(stack.base, token).fetch("GET", "/v1/runs/")
    assert (refused.status, refused.headers["retry-after"]) == (503, "2")
    assert refused.detail == "The keys that tokens are checked with cannot be fetched at the moment. Try again."
    run_id = "run-123e4567-e89b-42d3-8456-426614174000"
    at_ingest = await Client(stack.broker_base, token).fetch("POST", f"/ingest/v1/runs/{run_id}/lease")
    assert (at_ingest.status, at_ingest.json["error_type"]) == (503, "store_unavailable")
    turned_away = await Client(stack.base, token).fetch("GET", f"/v1/runs/{run_id}/stream")
    assert turned_away.status == 200
    assert turned_away.body.startswith(b"retry: ")
    for base in (stack.base, stack.broker_base):
        unready = await Client(base, None).fetch("GET", "/readyz")
        assert (unready.status, unready.detail) == (
            503,
            "The keys that sign tokens were not fetched yet: its log says why (jwks_not_fetched).",
        )
