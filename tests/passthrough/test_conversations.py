"""A platform's conversations in front of it: locked, resumed and cancelled like runstream's own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from letta_client import AsyncLetta

from runstream.schemas import DEFAULT_TENANT, new_agent_id, new_conversation_id, new_otid
from tests.support.http import open_stream
from tests.support.letta import as_json, chunks_of, types_of, user
from tests.support.nats import free_ports
from tests.support.platform import ToyLetta, in_front_of, scripted
from tests.support.stack import Stack, stack_running
from tests.support.upstream import Exchange, Script
from tests.support.waiting import wait_until

Front = tuple[ToyLetta, Stack]


@asynccontextmanager
async def toy_front(nats_url: str, **settings: Any) -> AsyncIterator[Front]:
    toy = ToyLetta()
    async with (
        toy.running() as url,
        toy.agent(url) as agent,
        in_front_of(nats_url, url, agent=agent, **settings) as stack,
    ):
        yield toy, stack


@pytest_asyncio.fixture
async def front(nats_url: str) -> AsyncIterator[Front]:
    """A toy of Letta's platform, and a runstream in front of it, which asks it for runs as well."""
    async with toy_front(nats_url) as made:
        yield made


@pytest_asyncio.fixture
async def letta(front: Front) -> AsyncIterator[AsyncLetta]:
    """Letta's own client, which knows of runstream alone."""
    async with AsyncLetta(base_url=front[1].base, api_key="dummy", max_retries=0) as client:
        yield client


def messages(conversation_id: str) -> str:
    return f"/v1/conversations/{conversation_id}/messages"


async def test_lettas_client_has_one_address_for_both(front: Front, letta: AsyncLetta) -> None:
    """Agents and conversations are the platform's, the answers to messages runstream's, and can be resumed."""
    toy, _ = front
    agent = await letta.agents.retrieve(toy.agent_id)
    assert (agent.id, agent.name) == (toy.agent_id, "toy")
    assert [each.id for each in (await letta.agents.list(limit=1)).items] == [toy.agent_id]
    conversation = await letta.conversations.create(agent_id=toy.agent_id)
    assert conversation.summary == "the platform's"
    assert (await letta.conversations.retrieve(conversation.id)).agent_id == toy.agent_id
    stream = await letta.conversations.messages.create(conversation.id, input="hello", background=True)
    seen = [chunk async for chunk in chunks_of(stream)]
    assert types_of(seen) == ["ping", *["assistant_message"] * 2, "stop_reason", "usage_statistics"]
    again = await letta.conversations.messages.stream(conversation.id, starting_after=seen[1]["seq_id"])
    assert [chunk async for chunk in chunks_of(again)] == seen[2:]
    assert as_json(await letta.runs.retrieve(seen[0]["run_id"]))["conversation_id"] == conversation.id
    assert (await letta.conversations.messages.list(conversation.id)).items == []
    assert toy.count("GET", messages(conversation.id)) == 1


async def test_a_conversation_is_asked_for_once(front: Front) -> None:
    """Its record is kept: with the platform's agent, and nothing else of the platform's."""
    toy, stack = front
    conversation_id = toy.conversation()
    for _ in range(3):
        async with stack.say_in(conversation_id, "hello") as stream:
            assert (await stream.rest())[-1].is_done
    assert toy.count("GET", f"/v1/conversations/{conversation_id}") == 1
    stored = await stack.index.conversation(DEFAULT_TENANT, conversation_id)
    assert stored is not None
    assert (stored.value.agent_id, stored.value.summary) == (toy.agent_id, None)


async def test_claims_and_otids_hold_in_a_conversation_of_the_platforms(front: Front) -> None:
    """Of many first messages at one time one starts a run; the same message again is the same run."""
    toy, stack = front
    conversation_id = toy.conversation()
    toy.hold.clear()
    body = {"background": True, "messages": [user("hello", new_otid())]}
    async with open_stream(stack.base, messages(conversation_id), body) as first:
        (ping,) = await first.take(1)
        run_id = ping.json["run_id"]
        others = [stack.fetch("POST", messages(conversation_id), json={"input": "hi"}) for _ in range(5)]
        for reply in await asyncio.gather(*others):
            assert (reply.status, reply.json["run_id"]) == (409, run_id)
        async with open_stream(stack.base, messages(conversation_id), body) as same:
            assert (await same.take(1))[0].json["run_id"] == run_id
        async with open_stream(stack.base, f"/v1/conversations/{conversation_id}/stream", {}) as resumed:
            assert (await resumed.take(1))[0].json["run_id"] == run_id
        toy.hold.set()
        assert (await first.rest())[-1].is_done
    assert toy.count("POST", messages(conversation_id)) == 1


async def test_many_first_messages_at_once(front: Front) -> None:
    """They may all ask the platform, and still one of them starts a run."""
    toy, stack = front
    toy.hold.clear()
    conversation_id = toy.conversation()
    otids = {"messages": [user("hello", new_otid())], "background": True}

    async def first_run() -> str:
        async with open_stream(stack.base, messages(conversation_id), otids) as stream:
            return str((await stream.take(1))[0].json["run_id"])

    assert len(set(await asyncio.gather(*(first_run() for _ in range(8))))) == 1
    toy.hold.set()


async def test_a_conversation_that_nobody_has(front: Front) -> None:
    """404 for a message and a cancel, and nothing is stored of it."""
    toy, stack = front
    conversation_id = new_conversation_id()
    for path in (messages(conversation_id), f"/v1/conversations/{conversation_id}/cancel"):
        reply = await stack.fetch("POST", path, json={"input": "hello"})
        assert (reply.status, reply.detail) == (404, f"Conversation not found with id='{conversation_id}'")
    assert await stack.index.conversation(DEFAULT_TENANT, conversation_id) is None
    assert toy.count("POST", messages(conversation_id)) == 0


async def test_a_conversation_that_is_deleted_at_the_platform(front: Front) -> None:
    """Once it is, it is gone for messages and cancels, though there was a record of it; a refused one stays."""
    toy, stack = front
    conversation_id, other = toy.conversation(), toy.conversation()
    path = f"/v1/conversations/{conversation_id}"
    for each in (conversation_id, other):
        async with stack.say_in(each, "hello") as stream:
            await stream.rest()
    del toy.conversations[other]
    assert (await stack.fetch("DELETE", f"/v1/conversations/{other}")).status == 404
    assert (await stack.fetch("DELETE", path)).json is None
    for reply in (
        await stack.fetch("POST", messages(conversation_id), json={"input": "hello"}),
        await stack.fetch("POST", f"{path}/cancel"),
    ):
        assert (reply.status, reply.detail) == (404, f"Conversation not found with id='{conversation_id}'")
    stored = await stack.index.conversation(DEFAULT_TENANT, other)
    assert stored is not None
    assert not stored.value.deleted


async def test_default_conversations_need_not_be_asked_for(front: Front) -> None:
    """An agent's default one is there if the agent is, which is for its answer to say."""
    toy, stack = front
    for path, body in ((messages("default"), {"agent_id": toy.agent_id}), (messages(toy.agent_id), {})):
        async with open_stream(stack.base, path, {"input": "hello", **body}) as stream:
            await stream.rest()
    assert not [path for method, path, _ in toy.asked if method == "GET"]


async def test_who_asks_for_a_conversation(nats_url: str) -> None:
    """The platform is told what it is told of every request; what it refuses is handed on as it says it."""
    async with toy_front(nats_url, auth="forward") as (toy, stack):
        toy.password = "right"
        conversation_id = toy.conversation()
        refused = await stack.fetch(
            "POST", messages(conversation_id), json={"input": "hello"}, headers={"Authorization": "Bearer wrong"}
        )
        assert (refused.status, refused.json) == (401, {"detail": "Unauthorized"})
        assert await stack.index.conversation(DEFAULT_TENANT, conversation_id) is None
        right = {"Authorization": "Bearer right"}
        cancelled = await stack.fetch("POST", f"/v1/conversations/{conversation_id}/cancel", headers=right)
        assert cancelled.status == 409
        assert await stack.index.conversation(DEFAULT_TENANT, conversation_id) is not None


async def silent(exchange: Exchange) -> None:
    await exchange.left.wait()


async def close(exchange: Exchange) -> None:
    exchange.cut()


def says(status: str, body: bytes) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.refuse(status, body)

    return script


NOT_SAID = "The platform was asked whose conversation this is, and its answer ({}) does not say."


@pytest.mark.parametrize(
    ("script", "status", "detail"),
    [
        (silent, 504, "The platform has not answered within 0.5 s."),
        (close, 502, "The platform has ended the connection without an answer."),
        (says("500 Oh", b"{}"), 502, NOT_SAID.format(500)),
        (says("302 Found", b""), 502, NOT_SAID.format(302)),
        (says("200 OK", b"no json"), 502, NOT_SAID.format(200)),
        (says("200 OK", b"[]"), 502, NOT_SAID.format(200)),
        (says("200 OK", b'{"agent_id":"agent-1"}'), 502, NOT_SAID.format(200)),
        (says("200 OK", b"[" * 100_000), 502, NOT_SAID.format(200)),
        (says("200 OK", b" " * (2**20 + 1)), 502, "The platform's answer is too long."),
        (says("403 Forbidden", b"no"), 403, "no"),
        (says("422 No", b'{"detail":"x","more":1}'), 422, "x"),
    ],
)
async def test_a_platform_that_cannot_say_whose_it_is(nats_url: str, script: Script, status: int, detail: str) -> None:
    """Then nothing is claimed, which would make a record, and the client may try again."""
    conversation_id = new_conversation_id()
    async with scripted(nats_url, script, silence_seconds=0.5) as (_, stack):
        reply = await stack.fetch("POST", messages(conversation_id), json={"input": "hello", "background": True})
        assert (reply.status, reply.detail) == (status, detail)
        assert await stack.index.conversation(DEFAULT_TENANT, conversation_id) is None


async def test_a_platform_that_is_not_there(nats_url: str) -> None:
    """A conversation that is not known yet is 502; one that is known takes messages."""
    (port,) = free_ports(1)
    async with in_front_of(nats_url, f"http://127.0.0.1:{port}") as stack:
        unknown = await stack.fetch("POST", messages(new_conversation_id()), json={"input": "hello"})
        assert (unknown.status, unknown.headers["retry-after"]) == (502, "2")
        assert unknown.detail == "The platform cannot be reached. Try again."
        async with stack.create({"chunks": 1, "interval_ms": 0}) as stream:
            assert (await stream.rest())[-1].is_done


async def test_a_cancel_in_a_conversation_of_the_platforms(front: Front) -> None:
    """It is found though its record is new, ends the run here, and the platform's by its agent."""
    toy, stack = front
    conversation_id = toy.conversation()
    nothing = await stack.fetch("POST", f"/v1/conversations/{conversation_id}/cancel")
    assert nothing.status == 409
    toy.hold.clear()
    async with stack.say_in(conversation_id, "hello") as stream:
        await stream.take(2)
        cancelled = await stack.fetch("POST", f"/v1/conversations/{conversation_id}/cancel")
        assert set(cancelled.json.values()) == {"cancelled"}
        assert (await stream.rest())[-2].json["stop_reason"] == "cancelled"


@pytest.mark.parametrize("by", ["conversation", "agent", "run"])
async def test_the_platform_hears_that_nobody_will_approve(front: Front, by: str) -> None:
    """A cancel that ends the waiting for approval ends it at the platform, too, as the client that asks for it."""
    toy, stack = front
    conversation_id = toy.conversation()
    toy.stop_reason = "requires_approval"
    async with stack.say_in(conversation_id, "hello") as stream:
        run_id = (await stream.rest())[0].json["run_id"]
    by_agent = f"/v1/agents/{toy.agent_id}/messages/cancel"
    path = f"/v1/conversations/{conversation_id}/cancel" if by == "conversation" else by_agent
    reply = await stack.fetch("POST", path, json={"run_ids": [run_id]} if by == "run" else {})
    assert reply.json == {run_id: "cancelled"}
    assert toy.count("POST", f"/v1/conversations/{conversation_id}/cancel") == 1


async def test_a_platform_that_does_not_hear_of_it_holds_nobody_up(nats_url: str) -> None:
    """What runstream knows has ended, whatever the platform makes of it."""
    toy = ToyLetta()
    toy.stop_reason = "requires_approval"
    conversation_id = toy.conversation()
    async with (
        serving_once(toy) as (url, stop),
        toy.agent(url) as agent,
        in_front_of(nats_url, url, agent=agent) as stack,
    ):
        async with stack.say_in(conversation_id, "hello") as stream:
            await stream.rest()
        await stop()
        for status in (200, 409):
            reply = await stack.fetch("POST", f"/v1/conversations/{conversation_id}/cancel")
            assert reply.status == status


@asynccontextmanager
async def serving_once(toy: ToyLetta) -> AsyncIterator[tuple[str, Any]]:
    """The toy, and what ends it before the block does."""
    ended, over = asyncio.Event(), asyncio.Event()
    url: list[str] = []

    async def serve() -> None:
        async with toy.running() as served:
            url.append(served)
            await ended.wait()
        over.set()

    async def stop() -> None:
        ended.set()
        await over.wait()

    task = asyncio.create_task(serve(), name="toy")
    await wait_until(lambda: url)
    try:
        yield url[0], stop
    finally:
        await stop()
        await task


async def test_outside_of_conversations_the_platform_is_not_told(front: Front) -> None:
    """An agent's other runs would end with it."""
    toy, stack = front
    toy.stop_reason = "requires_approval"
    async with open_stream(stack.base, messages("default"), {"input": "x", "agent_id": toy.agent_id}) as stream:
        await stream.rest()
    assert (await stack.fetch("POST", f"/v1/agents/{toy.agent_id}/messages/cancel")).status == 200
    assert not [path for _, path, _ in toy.asked if path.endswith("/cancel")]


async def test_without_a_platform_nothing_is_passed_on(nats_url: str) -> None:
    """What no route takes is 404, 405 or 307, as it was."""
    async with stack_running(nats_url) as stack:
        for method, path, status in (
            ("GET", f"/v1/agents/{new_agent_id()}", 404),
            ("GET", "/v1/conversations/default/messages", 405),
            ("PUT", f"/v1/conversations/{new_conversation_id()}", 405),
            ("POST", "/v1/conversations", 307),
        ):
            assert (await stack.fetch(method, path)).status == status, path
