"""Two tenants in one runstream: whatever they share by name, neither sees a byte of the other's."""

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest

from runstream.broker.runs import Runs
from runstream.schemas import AssistantMessage, new_agent_id, new_conversation_id, new_otid
from tests.support.auth import Client, Issuer
from tests.support.http import Event
from tests.support.ingest import said
from tests.support.stack import Stack, message

TENANTS = ("acme", "other")


@pytest.fixture
def clients(stack: Stack, issuer: Issuer) -> list[Client]:
    """One of each tenant."""
    return [Client(stack.base, issuer.token(tenant=tenant)) for tenant in TENANTS]


def ids(reply: Any) -> list[str]:
    assert reply.status == 200, reply
    return [each["id"] for each in reply.json]


def runs_in(events: list[Event]) -> set[str]:
    return {event.json["run_id"] for event in events if not event.is_done and event.json.get("run_id")}


async def events_of(client: Client, path: str, body: dict[str, Any] | None = None) -> list[Event]:
    async with client.stream(path, body) as stream:
        return await stream.rest()


async def test_the_same_otids_and_agents_are_two_requests(clients: list[Client]) -> None:
    """Each tenant has a run of its own, finds it by its otid, and has it alone in its lists."""
    agent_id, otid = new_agent_id(), new_otid()
    asked = [{"role": "user", "content": "hello", "otid": otid}]
    made = await asyncio.gather(*(client.run(agent_id, messages=asked) for client in clients for _ in range(5)))
    mine, theirs = made[:5], made[5:]
    assert len({*mine}) == len({*theirs}) == 1
    assert mine[0] != theirs[0]
    for client, run_id in zip(clients, (mine[0], theirs[0]), strict=True):
        assert ids(await client.fetch("GET", f"/v1/runs/?agent_id={agent_id}")) == [run_id]
        found = await events_of(client, "/v1/conversations/default/stream", {"otid": otid})
        assert runs_in(found) == {run_id}


async def test_the_same_conversation_id_is_two_conversations(
    stack: Stack, issuer: Issuer, clients: list[Client]
) -> None:
    """A writer chooses it: each tenant's is its own, in what is read, listed, changed, followed and deleted."""
    conversation_id, agents = new_conversation_id(), [new_agent_id(), new_agent_id()]
    runs = []
    for tenant, agent_id in zip(TENANTS, agents, strict=True):
        writer = Client(stack.broker_base, issuer.token(tenant=tenant))
        body = {"agent_id": agent_id, "conversation_id": conversation_id}
        opened = await writer.fetch("POST", "/ingest/v1/runs", json=body)
        assert opened.status == 201, opened
        runs.append(opened.json["run_id"])
        path = f"/ingest/v1/runs/{runs[-1]}"
        assert (await writer.fetch("POST", f"{path}/chunks", json={**said(0), "content": tenant})).status == 200
        assert (await writer.fetch("POST", f"{path}/end", json={"stop_reason": "end_turn"})).status == 200
    for client, tenant, agent_id, run_id in zip(clients, TENANTS, agents, runs, strict=True):
        found = await client.fetch("GET", f"/v1/conversations/{conversation_id}")
        assert found.json["agent_id"] == agent_id
        assert conversation_id in ids(await client.fetch("GET", "/v1/conversations/?limit=1000"))
        assert ids(await client.fetch("GET", f"/v1/runs/?conversation_id={conversation_id}")) == [run_id]
        spoken = (await client.fetch("GET", f"/v1/runs/{run_id}/messages")).json
        assert [each["content"] for each in spoken] == [tenant]
        changed = await client.fetch("PATCH", f"/v1/conversations/{conversation_id}", json={"summary": tenant})
        assert changed.json["summary"] == tenant
    mine, theirs = clients
    assert (await mine.fetch("DELETE", f"/v1/conversations/{conversation_id}")).status == 200
    assert conversation_id not in ids(await mine.fetch("GET", "/v1/conversations/?limit=1000"))
    assert conversation_id in ids(await theirs.fetch("GET", "/v1/conversations/?limit=1000"))
    assert (await theirs.fetch("GET", f"/v1/conversations/{conversation_id}")).json["summary"] == TENANTS[1]


async def test_a_cursor_or_an_id_of_anothers_leads_nowhere(clients: list[Client]) -> None:
    """Whichever way a run may be named: path, body, list's cursor, cancel."""
    mine, theirs = clients
    agent_id = new_agent_id()
    conversation_id = await mine.conversation(agent_id)
    run_id = await mine.run(agent_id, conversation_id=conversation_id)
    own = await theirs.run(agent_id)
    for body in ({"run_id": run_id}, {"run_id": run_id, "starting_after": 1}):
        refused = await theirs.fetch("POST", "/v1/conversations/default/stream", json=body)
        assert (refused.status, refused.detail) == (404, f"Run not found with id='{run_id}'")
    assert (await theirs.fetch("GET", f"/v1/runs/?after={run_id}")).status == 404
    assert (await theirs.fetch("GET", f"/v1/conversations/?after={conversation_id}")).status == 404
    cancelled = await theirs.fetch("POST", f"/v1/agents/{agent_id}/messages/cancel", json={"run_ids": [run_id, own]})
    assert cancelled.json == {run_id: "failed", own: "cancelled"}
    assert (await mine.fetch("GET", f"/v1/runs/{run_id}")).json["status"] == "completed"
    # The cursor of a run of mine, in a run of theirs, is a number like any other.
    events = await events_of(theirs, f"/v1/runs/{own}/stream", {"starting_after": 1})
    assert runs_in(events) == {own}


async def test_a_writer_writes_to_no_other_tenants_run(stack: Stack, issuer: Issuer) -> None:
    """Not even to one that this very broker has just heard of."""
    mine, theirs = (Client(stack.broker_base, issuer.token(tenant=tenant)) for tenant in TENANTS)
    run_id = (await mine.fetch("POST", "/ingest/v1/runs", json={"agent_id": new_agent_id()})).json["run_id"]
    path = f"/ingest/v1/runs/{run_id}"
    assert (await mine.fetch("POST", f"{path}/chunks", json=said(0))).json["index"] == 1
    failure = {"error_type": "llm_error"}
    for what, body in (("chunks", said(1)), ("lease", {}), ("end", {"stop_reason": "end_turn"}), ("fail", failure)):
        refused = await theirs.fetch("POST", f"{path}/{what}", json=body)
        assert (refused.status, refused.json["error_type"]) == (404, "run_not_found"), (what, refused)
    assert (await mine.fetch("POST", f"{path}/end", json={"stop_reason": "end_turn"})).status == 200


async def test_the_librarys_runs_are_its_tenants(stack: Stack, clients: list[Client]) -> None:
    """A platform's own process says whose they are; nobody else finds them."""
    async with Runs(stack.settings.nats_url, tenant="acme") as runs, runs.open(agent_id=new_agent_id()) as run:
        await run.publish(AssistantMessage(content="hello"))
    statuses = [(await client.fetch("GET", f"/v1/runs/{run.run_id}")).status for client in clients]
    assert statuses == [200, 404]


def test_a_tenant_has_a_name_that_a_key_may_have() -> None:
    """Another would be another's, or everybody's."""
    for name in ("", "*", "a.b", "a b", ">", "x" * 65):
        with pytest.raises(ValueError, match="tenant"):
            Runs("nats://127.0.0.1:4222", tenant=name)


# -- narrowed ---------------------------------------------------------------------------------------------------------


async def test_a_browser_may_have_one_run_and_nothing_else(stack: Stack, issuer: Issuer) -> None:
    """Of that run it has all that it may read."""
    owner = Client(stack.base, issuer.token())
    agent_id = new_agent_id()
    run_id, other = await owner.run(agent_id), await owner.run(agent_id)
    browser = Client(stack.base, issuer.token(scope="runs:read", run_id=run_id))
    assert (await browser.fetch("GET", f"/v1/runs/{run_id}")).status == 200
    assert (await browser.fetch("GET", f"/v1/runs/{run_id}/messages")).status == 200
    assert (await events_of(browser, f"/v1/runs/{run_id}/stream"))[-1].is_done
    assert (await events_of(browser, f"/v1/conversations/{agent_id}/stream", {"run_id": run_id}))[-1].is_done
    assert (await browser.fetch("GET", f"/v1/runs/{other}")).status == 404
    for path in ("/v1/runs/", "/v1/runs/active", "/v1/conversations/"):
        assert (await browser.fetch("GET", path)).status == 403
    assert (await browser.fetch("DELETE", f"/v1/runs/{run_id}")).status == 403


async def test_a_conversation_alone(stack: Stack, issuer: Issuer) -> None:
    """Its bearer talks there, lists what was said there, and starts nothing elsewhere."""
    owner = Client(stack.base, issuer.token())
    agent_id = new_agent_id()
    here, there = [await owner.conversation(agent_id) for _ in range(2)]
    elsewhere = await owner.run(agent_id, conversation_id=there)
    guest = Client(stack.base, issuer.token(conversation_id=here))
    run_id = await guest.run(agent_id, conversation_id=here)
    assert ids(await guest.fetch("GET", f"/v1/runs/?agent_id={agent_id}")) == [run_id]
    assert ids(await guest.fetch("GET", f"/v1/runs/?conversation_id={there}")) == []
    assert (await guest.fetch("GET", f"/v1/runs/?after={elsewhere}")).status == 404
    assert (await guest.fetch("GET", f"/v1/runs/{elsewhere}")).status == 404
    assert (await guest.fetch("GET", f"/v1/conversations/{there}")).status == 404
    assert (await guest.fetch("POST", f"/v1/conversations/{there}/messages", json=message("hi"))).status == 404
    assert (await guest.fetch("POST", f"/v1/agents/{agent_id}/messages", json={"input": "hi"})).status == 403
    assert (await guest.fetch("POST", f"/v1/conversations/?agent_id={agent_id}", json={})).status == 403
    assert (await guest.fetch("PATCH", f"/v1/conversations/{there}", json={"summary": "x"})).status == 404
    assert (await guest.fetch("DELETE", f"/v1/conversations/{there}")).status == 404


async def test_an_agent_alone(stack: Stack, issuer: Issuer) -> None:
    """Its bearer has all that is the agent's, and makes conversations of it; no other agent's."""
    owner = Client(stack.base, issuer.token())
    agent_id, other = new_agent_id(), new_agent_id()
    elsewhere = await owner.run(other)
    guest = Client(stack.base, issuer.token(agent_id=agent_id))
    conversation_id = await guest.conversation(agent_id)
    run_id = await guest.run(agent_id, conversation_id=conversation_id)
    assert ids(await guest.fetch("GET", "/v1/runs/")) == [run_id]
    assert ids(await guest.fetch("GET", "/v1/conversations/")) == [conversation_id]
    assert ids(await guest.fetch("GET", f"/v1/runs/?agent_id={other}")) == []
    assert ids(await guest.fetch("GET", f"/v1/conversations/?agent_id={other}")) == []
    assert (await guest.fetch("GET", f"/v1/runs/{elsewhere}")).status == 404
    assert (await guest.fetch("POST", f"/v1/agents/{other}/messages", json={"input": "hi"})).status == 403
    assert (await guest.fetch("POST", f"/v1/conversations/?agent_id={other}", json={})).status == 403


async def test_two_tenants_at_once(clients: list[Client]) -> None:
    """Both ask the same agent with the same otids, over and over: each is answered in its own words only."""
    agent_id = new_agent_id()

    async def talk(client: Client, tenant: str) -> list[tuple[str, str]]:
        heard = []
        for number in range(10):
            asked = {"role": "user", "content": json.dumps({"text": f"of {tenant}"}), "otid": f"same-{number}"}
            run_id = await client.run(agent_id, messages=[asked])
            heard += [(run_id, event.data) for event in await events_of(client, f"/v1/runs/{run_id}/stream")]
        return heard

    heard = await asyncio.gather(*(talk(*each) for each in zip(clients, TENANTS, strict=True) for _ in range(3)))
    of_tenant = [{run_id for talk in heard[begin : begin + 3] for run_id, _ in talk} for begin in (0, 3)]
    assert [len(runs) for runs in of_tenant] == [10, 10]
    for mine, theirs in pairwise([*of_tenant, of_tenant[0]]):
        assert not mine & theirs
    for begin, theirs, tenant in ((0, of_tenant[1], TENANTS[1]), (3, of_tenant[0], TENANTS[0])):
        spoken = " ".join(data for talk in heard[begin : begin + 3] for _, data in talk)
        assert not [run_id for run_id in theirs if run_id in spoken]
        assert tenant not in spoken
