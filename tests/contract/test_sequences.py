"""Whole streams, event by event, as the reference sent them."""

import asyncio
import json
from typing import Any

import pytest

from runstream.schemas import new_otid
from tests.support.captures import capture, normalised, normalised_object
from tests.support.http import DONE, Event, events_of, open_stream
from tests.support.stack import Stack

# Its text has the ten words that the reference's prompt counted.
KNOBS = '{ "chunks": 3, "interval_ms": 0, "text": "tok0 tok1 tok2" }'
LONG = {"chunks": 30, "interval_ms": 0, "text": " ".join(f"tok{number}" for number in range(30))}
FAILING = {"chunks": 3, "error_after": 0}


def without(events: list[Any], *keys: str) -> list[Any]:
    """Normalised events without keys whose values are the model's business; their presence is still compared."""
    return [
        event
        if event == "[DONE]"
        else (event[0], {key: None if key in keys else value for key, value in event[1].items()})
        for event in events
    ]


TOKENS = ("prompt_tokens", "total_tokens", "context_tokens")
MEASURED = dict.fromkeys(("ttft_ns", "total_duration_ns"))
"""What the reference measures in some runs, and not in others."""


def seq_ids_are_last(events: list[Event]) -> bool:
    """Whether `seq_id`, where there is one, is the last key: it is spliced in on the way out."""
    return all(list(event.json)[-1] == "seq_id" for event in events if '"seq_id"' in event.data)


async def test_foreground_stream(stack: Stack) -> None:
    """A foreground stream is the reference's: ping, chunks, stop reason, usage, end; no cursor anywhere."""
    async with stack.create(KNOBS, background=False) as stream:
        events = await stream.rest()
    assert normalised(events) == normalised(capture(1).events)
    assert seq_ids_are_last(events)
    assert {event.seq_id for event in events} == {None}


async def test_background_stream(stack: Stack) -> None:
    """A background stream is the reference's, each message with a cursor."""
    async with stack.create(KNOBS) as stream:
        events = await stream.rest()
    assert normalised(events) == normalised(capture(2).events)
    assert seq_ids_are_last(events)
    assert [event.seq_id is not None for event in events] == [True] * 4 + [False] * 3


async def test_background_stream_without_pings(stack: Stack) -> None:
    """With include_pings off, the stream begins with the first chunk."""
    async with stack.create(KNOBS, include_pings=False) as stream:
        events = await stream.rest()
    assert normalised(events) == normalised(capture(3).events)


async def test_resume_of_an_active_run_by_conversation(stack: Stack) -> None:
    """A client that comes back to a conversation with its cursor gets what follows, up to the end."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id, {**LONG, "interval_ms": 10}) as creator:
        cursor = (await creator.take(5))[-1].seq_id
        resumed = await events_of(stack.base, f"/v1/conversations/{conversation_id}/stream", {"starting_after": cursor})
        assert resumed == await creator.rest()
    expected = without(normalised(capture(4).events), *TOKENS)
    assert without(normalised(resumed), *TOKENS) == expected
    assert seq_ids_are_last(resumed)


async def test_resume_without_a_body(stack: Stack) -> None:
    """Without a body the stream begins at the beginning, and goes on where the reference's breaks off."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id, {**LONG, "interval_ms": 10}) as creator:
        first = await creator.take(5)
        events = await events_of(stack.base, f"/v1/conversations/{conversation_id}/stream")
        assert events == first + await creator.rest()
    expected = normalised(capture(6).events)
    assert expected[-1][0] == "error"
    assert normalised(events)[: len(expected) - 1] == expected[:-1]


async def test_resume_of_a_finished_run_by_otid(stack: Stack) -> None:
    """A finished run is found by the otid of its message, and gives what follows the cursor."""
    otid = new_otid()
    messages = [{"role": "user", "content": json.dumps(LONG), "otid": otid}]
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id, messages=messages) as creator:
        events = await creator.rest()
    body = {"otid": otid, "starting_after": events[28].seq_id}
    resumed = await events_of(stack.base, f"/v1/conversations/{conversation_id}/stream", body)
    assert without(normalised(resumed), *TOKENS) == without(normalised(capture(7).events), *TOKENS)
    assert resumed == events[29:]


async def test_resume_by_conversation_after_the_end(stack: Stack) -> None:
    """By conversation alone a run can no longer be found once it has ended."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id, KNOBS) as creator:
        await creator.rest()
    refused = await stack.fetch("POST", f"/v1/conversations/{conversation_id}/stream", json={})
    assert (refused.status, refused.json) == (capture(8).status, capture(8).json)


@pytest.mark.parametrize(("background", "number"), [(False, 9), (True, 10)])
async def test_error_before_the_first_chunk(stack: Stack, background: bool, number: int) -> None:
    """A failed run ends with its stop reason, `event: error` and, unlike the reference's, always with `[DONE]`."""
    async with stack.create(FAILING, background=background) as stream:
        events = await stream.rest()
    expected = [event for event in capture(number).events if event != DONE]
    assert events[-1] == DONE
    assert without(normalised(events[:-1]), "detail") == without(normalised(expected), "detail")
    assert seq_ids_are_last(events)


async def test_error_after_some_chunks(stack: Stack) -> None:
    """A run that fails in the middle keeps what it had said; of the reference's two stop reasons it has the second."""
    knobs = {"chunks": 5, "interval_ms": 0, "text": "tok0 tok1 tok2", "error_after": 3, "error_type": "llm_error"}
    async with stack.create(knobs) as stream:
        events = await stream.rest()
    theirs = capture(11).events
    assert [event.json.get("stop_reason") for event in theirs[4:6]] == ["error", "llm_api_error"]
    assert events[-1] == DONE
    assert normalised(events[:-2]) == normalised([*theirs[:4], theirs[5]])
    ours, error = events[-2], theirs[-1]
    assert (ours.event, list(ours.json)) == (error.event, list(error.json))
    assert ours.json["error_type"] == "llm_error"
    assert seq_ids_are_last(events)


async def test_cancelled_run(stack: Stack) -> None:
    """A cancel ends the stream of its creator and everybody else with one stop reason and `[DONE]`; the run says so."""
    words = " ".join(f"tok{number}" for number in range(10_000))
    conversation_id = await stack.conversation()
    path = f"/v1/conversations/{conversation_id}"
    async with (
        stack.say_in(conversation_id, {"chunks": 10_000, "interval_ms": 5, "text": words}) as creator,
        open_stream(stack.base, f"{path}/stream", {}) as resumed,
    ):
        await asyncio.gather(creator.take(19), resumed.take(14))
        cancelled = await stack.fetch("POST", f"{path}/cancel")
        await asyncio.gather(creator.rest(), resumed.rest())
    # The reference's resumed reader lost what was still on its way, and the end: it has what the creator has here.
    assert creator.seen == resumed.seen
    theirs = capture(12).events
    heard = len(theirs) - 2
    assert normalised(creator.seen[:heard] + creator.seen[-2:]) == normalised(theirs)
    assert normalised(resumed.seen[:14]) == normalised(capture(13).events[:14])
    assert {event.message_type for event in creator.seen[heard:-2]} <= {"assistant_message"}
    run_id = creator.seen[0].json["run_id"]
    (their_run_id,) = capture(14).json
    assert cancelled.status == capture(14).status
    assert cancelled.body.decode() == capture(14).body.replace(their_run_id, run_id)
    again = await stack.fetch("POST", f"{path}/cancel")
    their_conversation_id = capture(16).json["conversation_id"]
    assert again.status == capture(15).status
    assert again.body.decode() == capture(15).body.replace(their_conversation_id, conversation_id)
    got = await stack.fetch("GET", f"/v1/runs/{run_id}")
    assert got.status == capture(16).status
    assert list(got.json) == list(capture(16).json)
    assert normalised_object({**got.json, **MEASURED}) == normalised_object(capture(16).json)


async def test_busy_conversation(stack: Stack) -> None:
    """A conversation with an active run refuses another message, names the run, and says not to insist."""
    conversation_id = await stack.conversation()
    messages = [{"role": "user", "content": "puppet", "otid": "first"}, {"role": "user", "content": "puppet"}]
    async with stack.say_in(conversation_id, messages=messages) as creator:
        run_id = (await creator.take(1))[0].json["run_id"]
        path = f"/v1/conversations/{conversation_id}/messages"
        refused = await stack.fetch("POST", path, json={"input": "hello"})
        stack.puppet.finish(run_id)
        await creator.rest()
    assert refused.status == capture(5).status
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert refused.json["run_id"] == run_id
    assert refused.json["otid"] == "first"
    said = capture(5).json["detail"].replace(capture(5).json["run_id"], run_id)
    assert refused.detail == said


async def test_conversation(stack: Stack) -> None:
    """A conversation has the reference's keys first, in its order and forms, then those of the hosted service."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id, KNOBS) as creator:
        await creator.rest()
    got = await stack.fetch("GET", f"/v1/conversations/{conversation_id}")
    expected = capture(18).json
    assert got.status == capture(18).status
    assert list(got.json)[: len(expected)] == list(expected)
    # The messages of a context are the platform's to know.
    ours = {key: got.json[key] for key in expected if key != "in_context_message_ids"}
    theirs = {key: value for key, value in expected.items() if key != "in_context_message_ids"}
    assert normalised_object(ours) == normalised_object(theirs)
    assert {"archived", "archived_at", "context_window_limit", "description"} == set(got.json) - set(expected)


@pytest.mark.parametrize(("knobs", "status"), [({"chunks": 1}, "completed"), (FAILING, "failed")])
async def test_run(stack: Stack, knobs: dict[str, int], status: str) -> None:
    """However a run ended, it has the reference's keys in their order; one that failed has its error, too."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id, knobs) as creator:
        events = await creator.rest()
    got = await stack.fetch("GET", f"/v1/runs/{events[0].json['run_id']}")
    expected = capture(16).json
    assert list(got.json) == list(expected)
    error = {} if status == "completed" else {"error": {**events[-2].json, "seq_id": None}}
    assert got.json["metadata"] == {"run_type": "send_conversation_message", **error}
    assert got.json["status"] == status
    assert got.json["stop_reason"] == ("end_turn" if status == "completed" else "llm_api_error")
    assert got.json["total_duration_ns"] > 0
    own = {**MEASURED, **dict.fromkeys(("status", "stop_reason", "metadata"))}
    assert normalised_object({**got.json, **own}) == normalised_object({**expected, **own})


async def test_list_of_runs(stack: Stack) -> None:
    """A conversation's runs are an array of runs, each as it is when it is read by itself."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id, {"chunks": 1}) as creator:
        run_id = (await creator.rest())[0].json["run_id"]
    got = await stack.fetch("GET", f"/v1/runs/?conversation_id={conversation_id}")
    assert got.status == capture(17).status
    (ours,), (theirs,) = got.json, json.loads(capture(17).body)
    assert ours == (await stack.fetch("GET", f"/v1/runs/{run_id}")).json
    assert list(ours) == list(theirs)
    assert ours["total_duration_ns"] > 0
    assert normalised_object({**ours, **MEASURED}) == normalised_object({**theirs, **MEASURED})


async def test_removed_run(stack: Stack) -> None:
    """A run whose beginning retention has removed answers 410, as the reference's old runs do, for another reason."""
    run_id, events = await stack.finished({"chunks": 3, "interval_ms": 0})
    await stack.purge_up_to(await stack.record(run_id), events[2].seq_id or 0)
    refused = await stack.fetch("POST", f"/v1/runs/{run_id}/stream", json={})
    assert refused.status == capture(19).status
    assert refused.json == {"detail": "EXPIRED: Part of this run was removed by retention."}
    assert refused.headers["content-type"] == "application/json"
