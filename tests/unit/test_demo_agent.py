"""The demo agent does what its knobs say, at the moments they say, and refuses the rest."""

import asyncio
import itertools
import json
from typing import Any

import pytest

from runstream.broker.agents import Agent
from runstream.broker.agents.demo import DEFAULT_TEXT, demo
from runstream.broker.errors import AgentFailed
from runstream.schemas import (
    ApprovalRequestMessage,
    AssistantMessage,
    Chunk,
    ReasoningMessage,
    RunRequest,
    StopReason,
    ToolCallMessage,
    ToolReturnMessage,
    UsageStatistics,
    encode_chunk,
    new_agent_id,
    new_run_id,
)

AGENT: Agent = demo


class Clock:
    """A clock that only sleeping moves, and that keeps what was slept, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def request_of(body: dict[str, Any]) -> RunRequest:
    return RunRequest(run_id=new_run_id(), agent_id=new_agent_id(), body=body)


async def answer(body: dict[str, Any]) -> list[Chunk]:
    """All chunks, on a clock of their own."""
    clock = Clock()
    return [chunk async for chunk in demo(request_of(body), clock=clock, sleep=clock.sleep)]


async def obeyed(**knobs: Any) -> list[Chunk]:
    return await answer({"input": json.dumps(knobs)})


def texts(chunks: list[Chunk]) -> list[str]:
    return [str(chunk.content) for chunk in chunks if isinstance(chunk, AssistantMessage)]


def stop_and_usage(chunks: list[Chunk]) -> tuple[str, UsageStatistics]:
    stop, usage = chunks[-2:]
    assert isinstance(stop, StopReason)
    assert isinstance(usage, UsageStatistics)
    return stop.stop_reason, usage


async def test_plain_words_are_answered_in_words() -> None:
    """What is not a JSON object gets about twenty words that say what runstream does."""
    for text in ("hello", "[1, 2]", "3", '"x"', "{not json", ""):
        chunks = await answer({"input": text})
        assert "".join(texts(chunks)) == f"{DEFAULT_TEXT} "
        assert 15 <= len(texts(chunks)) <= 25
        stop_reason, usage = stop_and_usage(chunks)
        assert (stop_reason, usage.completion_tokens) == ("end_turn", len(texts(chunks)))


async def test_a_request_without_text_is_answered() -> None:
    """Nothing to read is no reason to fail."""
    assert texts(await answer({"input": [{"type": "image"}]}))
    assert texts(await answer({}))


async def test_an_empty_object_means_the_defaults() -> None:
    """Twenty chunks, one every twenty milliseconds, the first at once."""
    clock = Clock()
    chunks = [c async for c in demo(request_of({"input": "{}"}), clock=clock, sleep=clock.sleep)]
    assert len(texts(chunks)) == 20
    assert clock.now == pytest.approx(1000 + 19 * 0.020)


@pytest.mark.parametrize(
    "body",
    [
        {"input": '{"chunks": 3}'},
        {"input": [{"type": "text", "text": '{"chunks": 3}'}]},
        {"messages": [{"role": "user", "content": '{"chunks": 3}'}], "stream_tokens": False},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": '{"chunks": 3}'}]}]},
    ],
)
async def test_knobs_are_found_wherever_the_user_speaks(body: dict[str, Any]) -> None:
    """In `input` or in a message, as a string or as a text part."""
    assert len(texts(await answer(body))) == 3


@pytest.mark.parametrize("count", [0, 1, 7, 500])
async def test_an_answer_has_so_many_chunks_and_tokens(count: int) -> None:
    """`chunks` assistant messages, no more and no less, and as many completion tokens."""
    chunks = await obeyed(chunks=count, interval_ms=0)
    assert len(texts(chunks)) == count
    assert len(chunks) == count + 2
    _, usage = stop_and_usage(chunks)
    assert (usage.completion_tokens, usage.step_count) == (count, 1)
    assert usage.total_tokens == usage.context_tokens == count + usage.prompt_tokens


async def test_the_chunks_of_an_answer_are_one_message() -> None:
    """They share id, otid and step; another answer has its own."""
    first = [c for c in await obeyed(chunks=3) if isinstance(c, AssistantMessage)]
    second = [c for c in await obeyed(chunks=3) if isinstance(c, AssistantMessage)]
    identities = {(c.id, c.otid, c.step_id) for c in first}
    assert len(identities) == 1
    assert None not in identities.pop()
    assert not {first[0].id, first[0].otid, first[0].step_id} & {
        second[0].id,
        second[0].otid,
        second[0].step_id,
    }


async def test_a_text_is_spoken_word_by_word() -> None:
    """The words go round, each followed by a space."""
    assert texts(await obeyed(text=" uno  dos\n", chunks=3)) == ["uno ", "dos ", "uno "]


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
@pytest.mark.parametrize("text", ["a b", "größer 日本語", DEFAULT_TEXT])
async def test_a_chunk_has_exactly_so_many_ascii_bytes(size: int, text: str) -> None:
    """`chunk_bytes` fixes the size, whatever the text."""
    chunks = texts(await obeyed(chunk_bytes=size, text=text, chunks=9))
    assert [len(chunk.encode("ascii")) for chunk in chunks] == [size] * 9


async def test_sized_chunks_continue_the_text() -> None:
    """Cut anywhere, the pieces still add up to the text."""
    assert "".join(texts(await obeyed(chunk_bytes=3, text="uno dos", chunks=5))) == "uno dos uno dos"


@pytest.mark.parametrize("busy", [0.0, 0.005, 0.019])
async def test_each_chunk_has_its_moment(busy: float) -> None:
    """The time that others take between two chunks does not add up."""
    clock = Clock()
    body = {"input": json.dumps({"chunks": 50, "interval_ms": 20, "silence_ms": 300})}
    moments = []
    async for chunk in demo(request_of(body), clock=clock, sleep=clock.sleep):
        if isinstance(chunk, AssistantMessage):
            moments.append(clock.now - 1000)
            clock.now += busy
    assert moments == pytest.approx([0.3 + number * 0.020 for number in range(50)])


async def test_a_late_chunk_is_not_made_later() -> None:
    """After a stall, what is due comes at once, and the rest at its moment."""
    clock = Clock()
    moments = []
    body = {"input": json.dumps({"chunks": 6, "interval_ms": 10})}
    async for chunk in demo(request_of(body), clock=clock, sleep=clock.sleep):
        if isinstance(chunk, AssistantMessage):
            moments.append(clock.now - 1000)
            clock.now += 0.035 if len(moments) == 1 else 0
    assert moments == pytest.approx([0, 0.035, 0.035, 0.035, 0.040, 0.050])


async def test_a_flood_lets_others_take_their_turn() -> None:
    """Without an interval nothing is waited for, and still the event loop goes on."""
    turns = itertools.count()
    stop = asyncio.Event()

    async def bystander() -> None:
        while not stop.is_set():
            next(turns)
            await asyncio.sleep(0)  # only to give the turn back

    other = asyncio.create_task(bystander())
    body = {"input": json.dumps({"chunks": 1000, "interval_ms": 0})}
    chunks = [chunk async for chunk in demo(request_of(body))]
    stop.set()
    await other
    assert len(texts(chunks)) == 1000
    assert next(turns) > 10


async def test_silence_comes_before_everything() -> None:
    """Not even a thought comes before it is over."""
    clock = Clock()
    body = {"input": json.dumps({"silence_ms": 1500, "reasoning": True})}
    async for chunk in demo(request_of(body), clock=clock, sleep=clock.sleep):
        assert isinstance(chunk, ReasoningMessage)
        break
    assert clock.slept == [1.5]


async def test_thoughts_and_tools_come_before_the_answer() -> None:
    """A reasoning message, a call and its return, of the same step, on top of `chunks`."""
    chunks = await obeyed(reasoning=True, tool_call=True, chunks=2)
    thought, call, returned, *rest = chunks
    assert isinstance(thought, ReasoningMessage)
    assert isinstance(call, ToolCallMessage)
    assert isinstance(returned, ToolReturnMessage)
    assert call.tool_call.tool_call_id == returned.tool_call_id
    assert len({thought.step_id, call.step_id, returned.step_id}) == 1
    assert len({thought.id, call.id, returned.id}) == 3
    assert len(texts(rest)) == 2
    assert stop_and_usage(chunks)[1].completion_tokens == 2


async def test_every_chunk_can_be_stored() -> None:
    """All the kinds it knows encode as they are."""
    chunks = await obeyed(reasoning=True, tool_call=True, approval=True)
    assert all(encode_chunk(chunk, run_id=new_run_id()) for chunk in chunks)


@pytest.mark.parametrize(("after", "error_type"), [(0, None), (1, None), (5, "llm_timeout"), (5, "own_type")])
async def test_it_fails_after_exactly_so_many_chunks(after: int, error_type: str | None) -> None:
    """With the error it is told, and without stop reason or usage: those belong to the ending."""
    knobs: dict[str, Any] = {"chunks": 5, "error_after": after, "interval_ms": 0}
    if error_type is not None:
        knobs["error_type"] = error_type
    chunks: list[Chunk] = []

    async def follow() -> None:
        async for chunk in demo(request_of({"input": json.dumps(knobs)})):
            chunks.append(chunk)  # noqa: PERF401  (a comprehension would lose what came before the error)

    with pytest.raises(AgentFailed) as caught:
        await follow()
    assert len(texts(chunks)) == len(chunks) == after
    assert caught.value.error_type == (error_type or "llm_error")
    assert caught.value.message is None


@pytest.mark.parametrize(
    ("knobs", "name", "allowed"),
    [
        ({"chunks": -1}, "chunks", "0 to 1000000"),
        ({"chunks": 1_000_001}, "chunks", "0 to 1000000"),
        ({"chunks": "3"}, "chunks", "a whole number"),
        ({"chunks": 1.5}, "chunks", "a whole number"),
        ({"chunks": True}, "chunks", "a whole number"),
        ({"chunks": None}, "chunks", "a whole number"),
        ({"interval_ms": -0.1}, "interval_ms", "milliseconds from 0"),
        ({"silence_ms": 1e9}, "silence_ms", "to 86400000"),
        ({"chunk_bytes": 0}, "chunk_bytes", "from 1 to"),
        ({"chunk_bytes": None}, "chunk_bytes", "from 1 to"),
        ({"text": ""}, "text", "at least one word"),
        ({"text": " \n"}, "text", "at least one word"),
        ({"reasoning": 1}, "reasoning", "true or false"),
        ({"tool_call": "yes"}, "tool_call", "true or false"),
        ({"approval": []}, "approval", "true or false"),
        ({"error_after": -1}, "error_after", "0 to 1000000"),
        ({"error_after": 21}, "error_after", "at most 'chunks', which is 20"),
        ({"error_type": ""}, "error_type", "a name"),
        ({"chunk": 3}, "chunk", "There are: chunks, interval_ms"),
    ],
)
async def test_a_bad_knob_is_named_with_what_it_may_be(knobs: dict[str, Any], name: str, allowed: str) -> None:
    """Before anything is said: which knob, and what is allowed."""
    with pytest.raises(AgentFailed) as caught:
        await obeyed(**knobs)
    assert caught.value.error_type == "invalid_demo_request"
    assert f"'{name}'" in (caught.value.message or "")
    assert allowed in (caught.value.message or "")


async def test_it_can_end_by_asking_for_approval() -> None:
    """The request comes after the answer, and the stop reason says what is waited for."""
    chunks = await obeyed(approval=True, chunks=2)
    request = chunks[-3]
    assert isinstance(request, ApprovalRequestMessage)
    assert request.tool_call.tool_call_id
    assert len(texts(chunks)) == 2
    assert stop_and_usage(chunks)[0] == "requires_approval"


@pytest.mark.parametrize(
    ("message", "returned", "words"),
    [
        (
            {"type": "approval", "approvals": [{"tool_call_id": "call_1", "approve": True}]},
            [("call_1", "success", "The weather is fine.")],
            "was approved",
        ),
        (
            {"approve": True, "approval_request_id": "call_1"},
            [("call_1", "success", "The weather is fine.")],
            "was approved",
        ),
        (
            {
                "type": "approval",
                "approvals": [{"tool_call_id": "call_1", "approve": False, "reason": "Rain."}],
            },
            [],
            "was denied, so the tool did not run. The reason: Rain.",
        ),
        ({"type": "approval"}, [], "was denied"),
        (
            {"tool_returns": [{"tool_call_id": "call_1", "tool_return": "hail", "status": "success"}]},
            [("call_1", "success", "hail")],
            "was approved",
        ),
        (
            {"tool_returns": [{"tool_call_id": "call_1", "tool_return": "stuck", "status": "error"}]},
            [("call_1", "error", "stuck")],
            "failed",
        ),
        (
            {
                "type": "approval",
                "approvals": [
                    {"tool_call_id": "a", "approve": False},
                    {"tool_call_id": "b", "approve": True},
                ],
            },
            [("b", "success", "The weather is fine.")],
            "Some of the tool calls were approved",
        ),
    ],
)
async def test_an_answer_to_an_approval_request_goes_on(
    message: dict[str, Any], returned: list[tuple[str, str, str]], words: str
) -> None:
    """First what the tools returned, then the decision in words, then a normal end."""
    chunks = await answer({"messages": [message]})
    returns = [c for c in chunks if isinstance(c, ToolReturnMessage)]
    assert [(c.tool_call_id, c.status, c.tool_return) for c in returns] == returned
    assert chunks[: len(returns)] == returns
    assert words in "".join(texts(chunks))
    assert stop_and_usage(chunks)[0] == "end_turn"
