"""What is to be seen of runs beside what they say: figures, followers, the outline of a log, and a gateway's health."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from runstream.broker.errors import Unavailable
from runstream.broker.keys import LEASE_SECONDS
from runstream.broker.messages import StoredMessage
from runstream.broker.reader import OUTLINE_BYTES
from runstream.broker.topology import LogAddress, streams_of
from runstream.gateway.figures import Figures
from runstream.schemas import RunRecord, new_agent_id, new_run_id
from tests.support.eventsource import open_source, source_path
from tests.support.nats import NatsServer
from tests.support.outages import stopped
from tests.support.stack import Stack, stack_running
from tests.support.waiting import wait_until

SECRET = "s3cret"


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream whose platform has a password in its address."""
    upstream = {"upstream": f"http://user:{SECRET}@platform.test"}
    async with stack_running(nats_url, gateway=upstream, is_patient=False) as running:
        yield running


async def get(stack: Stack, path: str) -> Any:
    reply = await stack.fetch("GET", f"/v1/runstream/{path}")
    assert reply.status == 200, reply
    return reply.json


async def figures(stack: Stack, *run_ids: str) -> Any:
    return await get(stack, "figures?" + "&".join(f"run_ids={run_id}" for run_id in run_ids))


async def test_figures_of_a_live_run(stack: Stack) -> None:
    """How far its log has come, that its lease is renewed, and how many follow it here."""
    async with stack.live(3) as (run_id, _):
        (found,) = await figures(stack, run_id)
        record = await stack.record(run_id)
        assert found["last_seq_id"] == await stack.tip(record)
        assert found["messages"] == 5, "a ping, an attempt and three chunks"
        assert found["lease"]["seconds"] == stack.settings.lease_seconds
        here = {"gateway": stack.hub.name, "followers": 1, "behind": 0, "lag_messages": 0}
        assert found["here"] == here
        async with stack.resume(run_id) as second:
            await second.take(4)
            assert (await figures(stack, run_id))[0]["here"]["followers"] == 2


async def test_figures_of_what_is_not_there(stack: Stack) -> None:
    """An ended run has no lease; one that there is not is passed over, and so is what is no id; each is told once."""
    run_id, events = await stack.finished({"chunks": 2})
    (found,) = await figures(stack, new_run_id(), run_id, "run-1", "*", run_id)
    assert (found["run_id"], found["lease"], found["here"]["followers"]) == (run_id, None, 0)
    assert found["messages"] == len(events) + 1, "an attempt is no event"
    assert await get(stack, "figures") == []


async def test_a_lease_that_was_let_go_is_none(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer writes no more, and no other has taken the run over."""

    async def let_go(_: str, subject: str) -> StoredMessage:
        return StoredMessage(subject, 1, b"default", {LEASE_SECONDS: "0"}, stored_at_ns=1)

    async with stack.live(1) as (run_id, _):
        record = await stack.record(run_id)
        with monkeypatch.context() as patched:
            patched.setattr(stack.jetstream, "last_message", let_go)
            (found,) = await Figures(stack.jetstream, stack.hub).of([record])
        assert found.lease is None


async def test_figures_of_which_one_fails(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are not looked at any more: nobody would hear of them, and there are places for so many only."""
    records = [RunRecord(id=new_run_id(), agent_id=new_agent_id(), status="running", shard=0) for _ in range(3)]

    async def last(address: LogAddress) -> None:
        if address.run_id == records[1].id:
            raise Unavailable("Away.")
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(stack.hub.reader, "last", last)
        with pytest.raises(Unavailable):
            await Figures(stack.jetstream, stack.hub).of(records)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "figures"]


async def test_followers_say_where_they_began(stack: Stack) -> None:
    """Each open stream, with its framing, the cursor it was resumed after, and how far it has come."""
    async with stack.live(3) as (run_id, creator):
        second = creator.seen[2].seq_id
        async with open_source(stack.base, source_path(run_id), last_event_id=second) as source:
            await source.take(1)
            found = await get(stack, f"runs/{run_id}/followers")
            tip = await stack.tip(await stack.record(run_id))
            told = [(each["framing"], each["began_after"], each["cursor"]) for each in found["followers"]]
            assert told == [("letta", 0, tip), ("event_source", second, tip)]
            assert [each["behind_messages"] for each in found["followers"]] == [0, 0]
        source.leave()
        tail = stack.hub.followed(run_id)
        assert tail is not None
        await wait_until(lambda: len(tail.followers) == 1, 5, "who has left is still counted")


async def test_followers_of_a_run_that_nobody_follows(stack: Stack) -> None:
    """None, here."""
    run_id, _ = await stack.finished({"chunks": 1})
    await stack.nobody_follows()
    assert (await get(stack, f"runs/{run_id}/followers"))["followers"] == []


async def test_an_outline_has_every_message_once(stack: Stack) -> None:
    """In order and in parts of any size, with kind, size, and a time that does not go back."""
    run_id, _ = await stack.finished({"chunks": 600, "interval_ms": 0})
    whole = await get(stack, f"runs/{run_id}/outline")
    assert whole["kinds"] == ["ping", "attempt", *["data"] * 600, "plain", "plain", "end"]
    assert whole["seq_ids"] == sorted(set(whole["seq_ids"]))
    assert whole["stored_at_ms"] == sorted(whole["stored_at_ms"])
    record = await stack.record(run_id)
    first = await stack.jetstream.message_at(f"RUNS_{record.shard}", whole["seq_ids"][0])
    assert first is not None
    assert (whole["bytes"][0], whole["stored_at_ms"][0]) == (len(first.body), first.stored_at_ns // 1_000_000)
    parts: dict[str, list[Any]] = {name: [] for name in whole}
    while True:
        after = parts["seq_ids"][-1] if parts["seq_ids"] else 0
        part = await get(stack, f"runs/{run_id}/outline?starting_after={after}&limit=250")
        for name, values in part.items():
            parts[name] += values
        if not part["seq_ids"]:
            break
    assert parts == whole


async def test_an_outline_of_what_retention_has_removed(stack: Stack) -> None:
    """410, never a part that looks like the whole; nor nothing at all."""
    run_id, events = await stack.finished({"chunks": 5})
    record = await stack.record(run_id)
    for seq in (int(events[2].seq_id or 0), await stack.tip(record)):
        await stack.purge_up_to(record, seq)
        assert (await stack.fetch("GET", f"/v1/runstream/runs/{run_id}/outline")).status == 410


async def test_an_outline_of_large_messages_comes_in_parts(stack: Stack) -> None:
    """Their bodies are read with them, and one request costs no more than so many: the next goes on from there."""
    async with stack.live(12, size=400_000) as (run_id, _):
        seen = [0]
        parts: list[int] = []
        while found := (await get(stack, f"runs/{run_id}/outline?starting_after={seen[-1]}"))["seq_ids"]:
            seen += found
            parts.append(len(found))
        assert sum(parts) == 2 + 12, "a ping, an attempt and the chunks"
        assert max(parts) <= 2 + OUTLINE_BYTES // 400_000 + 1
        assert seen == sorted({*seen})


@pytest.mark.parametrize("path", ["followers", "outline"])
async def test_a_run_that_there_is_not(stack: Stack, path: str) -> None:
    """404; and 400 for what is no id."""
    assert (await stack.fetch("GET", f"/v1/runstream/runs/{new_run_id()}/{path}")).status == 404
    assert (await stack.fetch("GET", f"/v1/runstream/runs/run-1/{path}")).status == 400


@pytest.mark.parametrize("query", ["limit=0", "limit=2001", "starting_after=-1", "starting_after=x"])
async def test_an_outline_has_bounds(stack: Stack, query: str) -> None:
    """422 for what is beyond them."""
    assert (await stack.fetch("GET", f"/v1/runstream/runs/{new_run_id()}/outline?{query}")).status == 422


async def test_too_many_figures(stack: Stack) -> None:
    """A hundred at one time."""
    query = "&".join(f"run_ids={new_run_id()}" for _ in range(101))
    assert (await stack.fetch("GET", f"/v1/runstream/figures?{query}")).status == 422


async def test_the_run_of_an_otid(stack: Stack) -> None:
    """As it is read by its id."""
    messages = [{"role": "user", "content": '{"chunks": 1}', "otid": "an otid, of mine"}]
    run_id, _ = await stack.finished({}, messages=messages)
    assert (await get(stack, "run?otid=an+otid%2C+of+mine"))["id"] == run_id
    assert (await stack.fetch("GET", "/v1/runstream/run?otid=another")).status == 404
    assert (await stack.fetch("GET", "/v1/runstream/run")).status == 422


async def test_health_says_how_all_is(stack: Stack) -> None:
    """NATS, streams, runs, this gateway, versions, settings; and not one secret."""

    async def with_the_run() -> Any:
        """The findings once the gateway has heard of the run from the index: health does not wait for that."""
        found = await get(stack, "health")
        return found if found["runs"].get("running", 0) >= 1 else None

    async with stack.live(1):
        found = await wait_until(with_the_run, message="the run that goes on is not counted")
    assert found["unready"] is None
    assert found["nats"]["is_connected"]
    assert [each["name"] for each in found["streams"]] == streams_of(stack.settings)
    assert all(each["problem"] is None for each in found["streams"])
    assert found["gateway"]["name"] == stack.hub.name
    assert found["gateway"]["streams"] >= 1
    values = {each["name"]: each["value"] for each in found["settings"]}
    assert values["RUNSTREAM_UPSTREAM"] == "(set, and not shown)"
    assert values["RUNSTREAM_RETENTION"] == 24 * 3600
    assert SECRET not in str(found)


async def test_health_while_nats_is_away(stack: Stack, nats_server: NatsServer) -> None:
    """It is what health is for."""
    async with stopped(nats_server):
        await wait_until(lambda: not stack.hub.jetstream.connection.is_connected, 10, "it is not noticed")
        found = await get(stack, "health")
        assert found["unready"] == "NATS is not connected."
        assert not found["nats"]["is_connected"]
        assert all(each["problem"] for each in found["streams"])
    await stack.is_back()


async def test_a_session_where_nobody_is_asked(stack: Stack) -> None:
    """Whoever asks may do everything, and needs no cookie for it."""
    found = await get(stack, "session")
    assert (found["is_asked"], found["tenant"], found["scopes"]) == (False, "default", ["admin"])
    assert found["gateway"] == stack.hub.name
    assert not found["has_demo_agent"]
    opened = await stack.fetch("POST", "/v1/runstream/session")
    assert opened.status == 200
    assert "set-cookie" not in opened.headers
