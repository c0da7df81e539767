"""A run's life as its writer has it: opened, appended to, kept alive, ended."""

import asyncio
import time
from functools import partial

import pytest

from runstream.broker.errors import Unavailable
from runstream.broker.keys import lease_key, request_key
from runstream.broker.leaders import Leaders
from runstream.broker.runs import Runs
from runstream.schemas import RunRecord, new_agent_id, new_conversation_id, new_run_id, status_of
from tests.support.core import SETTINGS
from tests.support.http import DONE, Reply
from tests.support.ingest import Writer, content_of, numbers_of, open_run, said, told, writer_of, writing
from tests.support.stack import Stack
from tests.support.waiting import wait_until

LEASE_SECONDS = float(SETTINGS["lease_seconds"])


def answered(reply: Reply) -> tuple[int, int]:
    """How many chunks of a request are stored, and the place of the next one."""
    assert reply.status == 200, reply
    return reply.json["stored"], reply.json["index"]


async def test_what_is_appended_is_what_clients_read(stack: Stack, broker: str, other_broker: str) -> None:
    """An object, an array, lines: in order, each with the sequence that its writer was told, at any broker."""
    async with writing(broker) as run, stack.resume(run.run_id) as live:
        (ping,) = await live.take(1)
        assert (ping.message_type, ping.seq_id) == ("ping", run.first_seq)
        first = await run.append(0)
        assert (await live.take(1))[0].seq_id == first.json["last_seq_id"]
        others = [
            await run.at(other_broker).append(1, 2),
            await run.append_lines(b'{"content":"3 "}\n\n{"content":"4 "}'),
        ]
        assert [answered(reply) for reply in (first, *others)] == [(1, 1), (2, 3), (2, 5)]
        ended = await run.at(other_broker).end(usage={"total_tokens": 7})
        events = await live.rest()
    assert ended.json == {
        "run_id": run.run_id,
        "status": "completed",
        "stop_reason": "end_turn",
        "last_seq_id": ended.json["last_seq_id"],
    }
    assert events[-1] == DONE
    assert [event.json.get("total_tokens") for event in events[-3:-1]] == [None, 7]
    assert await numbers_of(stack, run.run_id) == [0, 1, 2, 3, 4]
    assert (await content_of(stack, run.run_id))[2]["seq_id"] == others[0].json["last_seq_id"]
    record = (await stack.fetch("GET", f"/v1/runs/{run.run_id}")).json
    assert (record["status"], record["metadata"]["run_type"], record["background"]) == ("completed", "ingest", True)
    assert not await holds(stack, lease_key(run.run_id))
    assert not await holds(stack, request_key("default", run.run_id))


async def holds(stack: Stack, key: str) -> bool:
    return (await stack.index.stored(key)).value is not None


async def test_a_conversation_is_made_and_is_busy_until_its_run_has_ended(stack: Stack, broker: str) -> None:
    """A second run of it is refused with the run that is in the way; after the end it is not."""
    conversation_id, agent_id = new_conversation_id(), new_agent_id()
    run = await writer_of(broker, agent_id=agent_id, conversation_id=conversation_id)
    busy = await open_run(broker, agent_id=agent_id, conversation_id=conversation_id)
    assert told(busy) == (409, "conflict")
    assert (busy.json["run_id"], busy.json["otid"], busy.json["is_repeated"]) == (run.run_id, None, False)
    assert (await run.end()).status == 200
    assert (await stack.fetch("GET", f"/v1/conversations/{conversation_id}")).status == 200
    following = await writer_of(broker, agent_id=agent_id, conversation_id=conversation_id)
    assert (await following.end()).status == 200


async def test_nobody_is_refused_by_leaders_that_may_lead_no_longer(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What keeps a conversation busy may have ended where this broker cannot see it: its writer is to come back."""
    wanted = {"agent_id": new_agent_id(), "conversation_id": new_conversation_id()}
    run = await writer_of(broker, **wanted)

    async def doubted(_: Leaders) -> None:
        raise Unavailable("by a test")

    with monkeypatch.context() as patched:
        patched.setattr(Leaders, "confirm", doubted)
        assert told(await open_run(broker, **wanted)) == (503, "store_unavailable")
    assert told(await open_run(broker, **wanted)) == (409, "conflict")
    assert (await run.end()).status == 200


async def test_an_opening_that_is_repeated_names_the_run(broker: str, other_broker: str) -> None:
    """Whose answer was lost asks again, with the same otids, and goes on with the run that is there."""
    wanted = {"agent_id": new_agent_id(), "otids": ["a", "", "b"]}
    run = await writer_of(broker, **wanted)
    again, shared = await open_run(other_broker, **wanted), await open_run(broker, **{**wanted, "otids": ["b"]})
    assert [told(reply) for reply in (again, shared)] == [(409, "conflict")] * 2
    assert [reply.json["run_id"] for reply in (again, shared)] == [run.run_id] * 2
    assert [reply.json["is_repeated"] for reply in (again, shared)] == [True, False]
    assert answered(await run.at(other_broker).append(0)) == (1, 1)
    assert (await run.end()).status == 200


async def test_an_opening_that_was_broken_off_is_completed_by_the_first_append(stack: Stack, broker: str) -> None:
    """A broker died between the claim and the first message: the run is begun by whoever hears of it next."""
    record = RunRecord(id=new_run_id(), agent_id=new_agent_id(), background=True, run_type="ingest", shard=0)
    await stack.index.claim(record, None)
    run = Writer(broker, record.id, 0)
    assert answered(await run.append(0)) == (1, 1)
    assert (await stack.record(run.run_id)).status == "running"
    assert (await run.end()).status == 200
    assert await numbers_of(stack, run.run_id) == [0]


async def test_a_foreground_run_has_no_cursor(stack: Stack, broker: str) -> None:
    """Its clients cannot resume it."""
    async with writing(broker, background=False) as run:
        assert (await stack.fetch("POST", f"/v1/runs/{run.run_id}/stream", json={})).status == 400


async def test_an_end_that_is_repeated_is_answered_the_same(stack: Stack, broker: str, other_broker: str) -> None:
    """The answer was lost, the run has ended as it was to: 200. If it has ended otherwise: 409, with how."""
    run = await writer_of(broker)
    await run.append(0)
    first, again = await run.end(), await run.at(other_broker).end()
    assert first.status == 200
    assert first.json == again.json
    otherwise = await run.end("max_steps"), await run.post("fail", {"error_type": "llm_error"}), await run.append(1)
    assert [told(reply) for reply in otherwise] == [(409, "run_ended")] * 3
    assert otherwise[2].json["stop_reason"] == "end_turn"
    assert await numbers_of(stack, run.run_id) == [0]


@pytest.mark.parametrize(
    ("said_of_it", "stop_reason", "error_type"),
    [
        (("end", {"stop_reason": "requires_approval"}), "requires_approval", None),
        (("end", {"stop_reason": "cancelled"}), "cancelled", None),
        (("end", {"stop_reason": "llm_api_error"}), "llm_api_error", "llm_error"),
        (("fail", {"error_type": "llm_rate_limit"}), "llm_api_error", "llm_rate_limit"),
        (("fail", {"error_type": "mine", "message": "m", "detail": "d"}), "error", "mine"),
    ],
)
async def test_a_run_ends_as_its_writer_says(
    stack: Stack, broker: str, said_of_it: tuple[str, object], stop_reason: str, error_type: str | None
) -> None:
    """A failing stop reason is given an error, an error its stop reason; said again, it is answered the same."""
    run = await writer_of(broker)
    replies = [await run.post(*said_of_it) for _ in range(2)]
    assert replies[0].json == replies[1].json
    assert (replies[0].status, replies[0].json["stop_reason"]) == (200, stop_reason)
    assert replies[0].json["status"] == status_of(stop_reason)
    record = await stack.record(run.run_id)
    assert (record.error or {}).get("error_type") == error_type
    async with stack.resume(run.run_id) as stream:
        assert (await stream.rest())[-1] == DONE


@pytest.mark.parametrize("how", ["by one request", "by an upload", "by nobody"])
async def test_a_run_that_spoke_knows_when(stack: Stack, broker: str, other_broker: str, how: str) -> None:
    """Whichever request has stored its first chunk, and whichever broker was told the end."""
    run = await writer_of(broker)
    if how == "by an upload":
        async with run.upload() as upload:
            await upload.say(0, 1)
            assert (await upload.finish()).status == 200
    elif how != "by nobody":
        assert answered(await run.append(0, 1)) == (2, 2)
    assert (await run.at(other_broker).end()).status == 200
    record = await stack.record(run.run_id)
    assert (record.ttft_ns is None) == (how == "by nobody")
    if record.ttft_ns is not None:
        assert record.total_duration_ns is not None
        assert 0 < record.ttft_ns <= record.total_duration_ns


async def test_an_end_expects_its_chunks(stack: Stack, broker: str) -> None:
    """One is missing: 409 with the right index, and the run goes on."""
    run = await writer_of(broker)
    await run.append(0, 1)
    refused = await run.post("end", {"stop_reason": "end_turn"}, expected_index=3)
    assert told(refused) == (409, "wrong_index")
    assert refused.json["index"] == 2
    assert answered(await run.append(2, expected_index=2)) == (1, 3)
    ended = await run.post("fail", {"error_type": "llm_timeout"}, expected_index=3)
    assert ended.status == 200
    assert await numbers_of(stack, run.run_id) == [0, 1, 2]


async def test_a_writer_that_is_silent_for_longer_than_a_lease_has_lost_its_run(stack: Stack, broker: str) -> None:
    """A broker ends the run as `run_lost`, and the writer is told when it comes back."""
    run = await writer_of(broker)
    await run.append(0)

    async def is_lost() -> bool:
        return (await stack.record(run.run_id)).is_terminal

    await wait_until(is_lost, 5)
    replies = [await run.append(1), await run.post("lease"), await run.end()]
    assert [told(reply) for reply in replies] == [(409, "run_ended")] * 3
    assert all("run_lost" in reply.detail for reply in replies)
    assert await numbers_of(stack, run.run_id) == [0]


def is_past(due: float) -> bool:
    return time.monotonic() >= due


@pytest.mark.parametrize("sign", ["lease", "chunks"])
async def test_every_request_is_a_sign_of_life(broker: str, other_broker: str, sign: str) -> None:
    """For three leases, at two brokers by turns; asked for by itself, it is said how long it lasts."""
    run = await writer_of(broker)
    begun_at = time.monotonic()
    for turn in range(12):
        due = begun_at + turn * LEASE_SECONDS / 4
        await wait_until(partial(is_past, due))
        at = run.at((broker, other_broker)[turn % 2])
        reply = await at.post("lease") if sign == "lease" else await at.post("chunks", [{"message_type": "ping"}])
        assert reply.status == 200, reply
        if sign == "lease":
            assert reply.json == {"run_id": run.run_id, "lease_seconds": LEASE_SECONDS}
    assert (await run.end()).status == 200


async def test_a_run_of_anybody_elses_is_not_written(stack: Stack, broker: str) -> None:
    """It would fence its own writer: a worker, or a platform's process."""
    run_id, _ = await stack.finished({"chunks": 1})
    library = Runs(stack.settings.nats_url, settings=stack.settings)
    async with library as runs, runs.open(agent_id=new_agent_id()) as mine:
        for other in (Writer(broker, run_id, 0), Writer(broker, mine.run_id, 0)):
            replies = [await other.append(0), await other.end(), await other.post("lease")]
            assert [told(reply) for reply in replies] == [(409, "not_ingested")] * 3
        await mine.publish(said(0))
    assert (await stack.record(mine.run_id)).status == "completed"


async def test_many_runs_side_by_side(stack: Stack, broker: str, other_broker: str) -> None:
    """Fifty runs at two brokers are each whole, and none knows of another."""

    async def one(number: int) -> None:
        run = await writer_of((broker, other_broker)[number % 2])
        for place in range(5):
            assert answered(await run.append(place, expected_index=place)) == (1, place + 1)
        assert (await run.end()).status == 200
        assert await numbers_of(stack, run.run_id) == [*range(5)]

    await asyncio.gather(*(one(number) for number in range(50)))
