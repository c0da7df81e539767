"""Whatever an agent yields, a writer posts and a platform streams: the run ends, and readers get events of it alone."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

from hypothesis import event, given
from hypothesis import strategies as st

from runstream.schemas import AssistantMessage, StopReason, new_agent_id
from tests.fuzz.cases import bounded, fuzzed
from tests.fuzz.conftest import Scripted
from tests.fuzz.said import OBJECTS, TEXT, TEXTS, VALUES, data_of, failure_of, said_in, told_of
from tests.fuzz.wire import split
from tests.support.http import NO_BODY, Reply
from tests.support.ingest import LAST_CHUNK, NDJSON, Upload, Writer, writer_of
from tests.support.stack import Stack
from tests.support.upstream import Exchange, Upstream

SHARE = 0.3 / 3
NUMBERS = itertools.count()

# -- an agent ---------------------------------------------------------------------------------------------------------

NO_JSON: st.SearchStrategy[Any] = st.sampled_from(
    [
        {1: 2},
        {"a": {1: 2}},
        {"a": {1, 2}},
        {"a": b"bytes"},
        {"a": object},
        b"{}",
        "text",
        None,
        7,
        [],
        AssistantMessage,
        {"a": {(): 1}},
    ]
)
YIELDED = st.one_of(
    OBJECTS,
    OBJECTS,
    VALUES,
    NO_JSON,
    st.builds(lambda content: AssistantMessage(content=content), VALUES),
    st.builds(lambda reason: StopReason(stop_reason=reason), TEXT),
)


@fuzzed(SHARE)
@given(scripts=st.lists(st.lists(YIELDED, max_size=4), min_size=1, max_size=2))
async def test_what_an_agent_yields(stack: Stack, scripts: list[list[Any]]) -> None:
    """Its run ends, with an error if something is no chunk; a run beside it has nothing of it."""
    agent = stack.agent
    assert isinstance(agent, Scripted)
    said = {f"script {next(NUMBERS)}": script for script in scripts}
    agent.scripts.update(said)
    async with bounded():
        runs = await asyncio.gather(*(said_in(stack, each, new_agent_id()) for each in said))
        for run_id, events in runs:
            event(f"ended with {failure_of(events)}")
            assert data_of(await told_of(stack, run_id)) == data_of(events)
    for each in said:
        del agent.scripts[each]


# -- a writer over HTTP -----------------------------------------------------------------------------------------------

NUMBERED = st.one_of(st.none(), st.none(), st.none(), st.integers(0, 3))
INDEXES = st.one_of(
    NUMBERED.map(lambda index: None if index is None else str(index)),
    st.sampled_from(["-1", "1e1", "\u00b2", "9" * 30, "", "0, 0", "one"]),
)
ENDS = st.one_of(TEXTS, st.sampled_from([b'{"stop_reason": "end_turn"}', b'{"error_type": "llm_error"}']))


async def uploaded(writer: Writer, pieces: Sequence[bytes], index: int | None, *, is_whole: bool) -> Reply | None:
    """Send lines in pieces; None for who hangs up before the end."""
    async with Upload(writer.base, writer.run_id, index) as upload:
        for piece in pieces:
            if piece:
                await upload.send(piece)
        if not is_whole:
            return None
        await upload.connection.send_raw(LAST_CHUNK)
        return await upload.reply()


async def posted(writer: Writer, data: st.DataObject) -> Reply | None:
    """Post something as chunks, in one of the ways there are."""
    texts = data.draw(st.lists(TEXTS, max_size=4))
    index = data.draw(INDEXES)
    headers = {} if index is None else {"Expected-Index": index}
    match data.draw(st.sampled_from(["object", "array", "lines", "upload", "end", "fail"])):
        case "object":
            return await writer.post("chunks", body=data.draw(TEXTS), headers=headers)
        case "array":
            return await writer.post("chunks", body=b"[" + b",".join(texts) + b"]", headers=headers)
        case "lines":
            return await writer.post("chunks", body=b"\n".join(texts), headers={**NDJSON, **headers})
        case "upload":
            pieces = data.draw(split(b"\n".join(texts)))
            return await uploaded(writer, pieces, data.draw(NUMBERED), is_whole=data.draw(st.booleans()))
        case what:
            return await writer.post(what, NO_BODY, body=data.draw(ENDS), headers=headers)


@fuzzed(SHARE)
@given(data=st.data())
async def test_what_a_writer_posts(stack: Stack, data: st.DataObject) -> None:
    """Each request is answered with what is stored of it, or why not; the run has what was, and can be ended."""
    async with bounded():
        writer = await writer_of(stack.broker_base)
        stored = 0
        for _ in range(data.draw(st.integers(1, 3))):
            reply = await posted(writer, data)
            if reply is not None:
                event(f"answered {reply.status}")
                assert reply.status < 500, reply
                stored = max(stored, reply.json.get("index", 0))
        ended = await writer.end()
        assert ended.status in {200, 409}, ended
        events = await told_of(stack, writer.run_id)
        assert len(data_of(events)) >= stored


# -- a platform -------------------------------------------------------------------------------------------------------

LINE_ENDS = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])
FIELDS = st.one_of(
    TEXTS.map(lambda text: b"data: " + text.replace(b"\n", b"\ndata: ")),
    TEXTS.map(lambda text: b"data:" + text),
    st.sampled_from(
        [
            b"event: error",
            b"event: message",
            b"event",
            b": comment",
            b"id: 7\0",
            b"retry: -1",
            b"data",
            b"data: [DONE]",
            b'data: {"message_type":"stop_reason","stop_reason":"end_turn"}',
            b'data: {"message_type":"stop_reason"}',
            b'data: {"message_type":"usage_statistics","total_tokens":"7"}',
            b'data: {"message_type":"error_message"}',
        ]
    ),
    st.binary(max_size=20),
)
STREAMED = st.builds(
    lambda events, end: b"".join(end.join(fields) + end * 2 for fields in events),
    st.lists(st.lists(FIELDS, min_size=1, max_size=3), max_size=5),
    LINE_ENDS,
)
HEADS = st.one_of(
    *[st.just(("200 OK", {"Content-Type": "text/event-stream"}))] * 9,
    st.tuples(
        st.sampled_from(
            ["200 OK", "204 No Content", "301 Moved", "404 Not Found", "429 Slow", "500 Oops", "99 Low", "1000 High"]
        ),
        st.dictionaries(
            st.sampled_from(["Content-Type", "Content-Encoding", "Retry-After", "Location"]),
            st.sampled_from(
                ["text/event-stream", "text/event-stream; charset=x", "application/json", "gzip", "", "-1", "/"]
            ),
        ),
    ),
)


@fuzzed(SHARE)
@given(
    head=HEADS,
    pieces=STREAMED.flatmap(split),
    how=st.sampled_from(["ends", "ends", "ends", "is cut", "is reset", "lasts"]),
)
async def test_what_a_platform_streams(
    fronting: Stack, platform: Upstream, head: tuple[str, dict[str, str]], pieces: list[bytes], how: str
) -> None:
    """However it answers, the run ends, and what was said before something that is no event is there."""

    async def script(exchange: Exchange) -> None:
        status, headers = head
        await exchange.head(status, {**headers, "Transfer-Encoding": "chunked"})
        await exchange.say(*(piece for piece in pieces if piece))
        match how:
            case "ends":
                await exchange.end()
            case "is cut":
                exchange.cut()
            case "is reset":
                exchange.reset()

    platform.script = script
    platform.exchanges.clear()  # Else it keeps all that it was asked, and what nobody took of its answers.
    async with bounded():
        run_id, events = await said_in(fronting, "hello", new_agent_id())
        event(f"ended with {failure_of(events)}")
        assert data_of(await told_of(fronting, run_id)) == data_of(events)
