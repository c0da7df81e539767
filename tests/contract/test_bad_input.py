"""What no client should send: each gets an answer within the deadline, never a 500, and harms nobody after it."""

import asyncio
import json
from typing import Any

import pytest

from runstream.schemas import MAX_OTIDS, MAX_SEQ_ID, new_agent_id, new_otid, new_run_id
from tests.support.http import Connection, Cut, Reply, open_stream
from tests.support.stack import Stack

JSON = {"Content-Type": "application/json"}
KNOBS = {"chunks": 2, "interval_ms": 0}


async def endpoints(stack: Stack) -> list[str]:
    """All paths that read a body."""
    run_id, _ = await stack.finished(KNOBS)
    conversation_id = await stack.conversation()
    return [
        f"/v1/conversations/{conversation_id}/stream",
        f"/v1/runs/{run_id}/stream",
        f"/v1/agents/{new_agent_id()}/messages/stream",
        f"/v1/conversations/{conversation_id}/messages",
        f"/v1/conversations/?agent_id={new_agent_id()}",
        f"/v1/agents/{new_agent_id()}/messages/cancel",
    ]


async def post(stack: Stack, path: str, body: bytes, **headers: str) -> Reply:
    return await stack.fetch("POST", path, body=body, headers={**JSON, **headers})


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 422),
        (b'{"input": "x"', 422),
        (b"{'input': 'x'}", 422),
        (b'{"starting_after": NaN, "input": NaN, "summary": NaN}', 422),
        (b'{"poll_interval": Infinity, "input": -Infinity, "summary": Infinity}', 422),
        (b"nonsense", 422),
        (b"{} {}", 422),
        (b'"text"', 422),
        (b"17", 422),
        (b'{"input": "\xff\xfe"}', 400),
        ('{"input": "ä"}'.encode("utf-16-be")[1:], 400),
        (b"\x00\x01\x02", 422),
        (b"[" * 200_000, 400),
        (b'{"input":' * 100_000, 400),
        (b"1" * 5000, 400),
        (b'{"input": ' + b"9" * 5000 + b"}", 400),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else None,
)
async def test_body_that_is_no_json(stack: Stack, body: bytes, status: int) -> None:
    """What cannot be read as a JSON object is refused everywhere, and nothing is started for it."""
    for path in await endpoints(stack):
        reply = await post(stack, path, body)
        assert reply.status == status, path
        assert reply.headers["content-type"] == "application/json"
        assert reply.detail


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_body_of_another_type(stack: Stack, content_type: str) -> None:
    """A body that says it is something else is not read as JSON."""
    for path in await endpoints(stack):
        reply = await stack.fetch("POST", path, body=b'{"input": "x"}', headers={"Content-Type": content_type})
        assert reply.status == 422, path
        assert "Input should be a valid dictionary" in reply.detail


async def test_byte_order_mark_and_encodings(stack: Stack) -> None:
    """JSON's own encodings are read, as they are by the reference: a byte order mark is no reason to refuse."""
    path = f"/v1/agents/{new_agent_id()}/messages/stream"
    for encoding in ("utf-8", "utf-16", "utf-32"):
        async with Connection.open(stack.base) as connection:
            body = json.dumps({"input": json.dumps(KNOBS)}).encode(encoding)
            await connection.send("POST", path, body=body, headers=JSON)
            assert (await connection.reply()).status == 200


@pytest.mark.parametrize("escape", [r"\ud800", r"\udc00\ud800", r"x\udfff"])
async def test_lone_surrogates(stack: Stack, escape: str) -> None:
    """Half a character cannot be stored as text: it is refused wherever it stands."""
    bodies = [
        '{"input": "%s"}',
        '{"messages": [{"role": "user", "content": "%s"}]}',
        '{"messages": [{"role": "user", "content": "x", "otid": "%s"}]}',
        '{"otid": "%s"}',
        '{"run_id": "%s"}',
        '{"agent_id": "%s"}',
        '{"summary": "%s"}',
        '{"%s": 1, "input": "x"}',
        '{"input": "x", "unknown": {"deep": ["%s"]}}',
    ]
    for path in await endpoints(stack):
        for body in bodies:
            reply = await post(stack, path, (body % escape).encode())
            assert (reply.status, reply.json) == (400, {"detail": "There was an error parsing the body"})


async def test_whole_surrogate_pairs(stack: Stack) -> None:
    """A character that JSON escapes as a pair of surrogates is a character."""
    knobs = json.dumps({"chunks": 1, "text": "\U0001f600"})
    async with stack.create(json.loads(knobs)) as stream:
        events = await stream.rest()
    assert "\\ud83d" in knobs
    assert events[1].json["content"] == "\U0001f600 "


async def test_nesting_to_its_limit(stack: Stack) -> None:
    """However deep a body is nested, it is either taken and answered, or refused as unreadable."""
    path = f"/v1/agents/{new_agent_id()}/messages/stream"
    statuses = []
    for depth in (1, 100, 500, *range(900, 1000), 2000):
        nested = b"[" * depth + b"]" * depth
        body = json.dumps({"input": json.dumps(KNOBS), "unknown": 0}).encode().replace(b": 0}", b": %b}" % nested)
        reply = await post(stack, path, body)
        statuses.append(reply.status)
        if reply.status == 200:
            assert reply.body.endswith(b"data: [DONE]\n\n")
    assert set(statuses) == {200, 400}
    assert statuses == sorted(statuses)


async def test_oversized_body_declared(stack: Stack) -> None:
    """A body that says it is too long is refused before it is read, and before anything is claimed."""
    for path in await endpoints(stack):
        async with Connection.open(stack.base) as connection:
            await connection.send("POST", path, headers={**JSON, "Content-Length": str(64 * 2**20)})
            reply = await connection.reply()
            assert (reply.status, list(reply.json)) == (413, ["detail"])
            # What comes now is the body: it must not be taken for a request.
            await connection.send("GET", "/livez")
            connection.writer.write_eof()
            assert await connection.ends()


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_oversized_body_sent(stack: Stack, is_chunked: bool) -> None:
    """A body that turns out too long is refused, and what is left of it is never taken for a request."""
    smuggled = b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n" * 40_000
    for path in await endpoints(stack):
        async with Connection.open(stack.base) as connection:
            length = {"Transfer-Encoding": "chunked"} if is_chunked else {"Content-Length": str(len(smuggled))}
            await connection.send("POST", path, headers={**JSON, **length})
            sending = asyncio.create_task(connection.send_raw(b"%x\r\n" % len(smuggled) * is_chunked + smuggled))
            reply = await connection.reply()
            await sending
            assert (reply.status, list(reply.json)) == (413, ["detail"])
            connection.writer.write_eof()
            assert await connection.ends()


async def test_body_as_large_as_may_be(stack: Stack) -> None:
    """A body just below the limit is taken, one just above is not: the whole request fits into one message."""
    path = f"/v1/agents/{new_agent_id()}/messages/stream"
    limit = 2**20 - 16 * 2**10
    largest = b'{"input":"%b"}'
    fits = largest % (b"x" * (limit - len(largest) + 2))
    async with Connection.open(stack.base) as connection:
        await connection.send("POST", path, body=fits, headers=JSON)
        assert (await connection.reply()).status == 200
    assert (await post(stack, path, fits + b" ")).status == 413


async def test_body_that_grows_when_it_is_stored(stack: Stack) -> None:
    """What counts is what is stored: numbers that are written longer there are refused, not sent to NATS."""
    path = f"/v1/agents/{new_agent_id()}/messages/stream"
    body = b'{"input": "x", "unknown": [' + b",".join([b"1e15"] * 150_000) + b"]}"
    async with stack.live(1) as (run_id, follower):
        reconnects = stack.hub.jetstream.connection.reconnects
        assert (await post(stack, path, body)).status == 413
        stack.puppet.say(run_id)
        await follower.take(1)
        assert stack.hub.jetstream.connection.reconnects == reconnects


async def test_connection_is_used_again(stack: Stack) -> None:
    """After a refusal, a stream or a plain answer the same connection takes the next request, or is closed."""
    run_id, events = await stack.finished(KNOBS)
    async with Connection.open(stack.base) as connection:
        for path, body, status in (
            (f"/v1/runs/{run_id}/stream", b"{}", 200),
            (f"/v1/runs/{run_id}/stream", b"[]", 422),
            (f"/v1/runs/{run_id}/stream/", b"{}", 307),
            (f"/v1/runs/{run_id}/stream", b"{}", 200),
        ):
            await connection.send("POST", path, body=body, headers=JSON)
            reply = await connection.reply()
            assert reply.status == status
            assert "connection" not in reply.headers
            if status == 200:
                assert reply.body.count(b"data: ") == len(events)


async def test_two_requests_at_once_on_one_connection(stack: Stack) -> None:
    """A second request that is sent before the first is answered waits for it, and is answered in its turn."""
    run_id, events = await stack.finished(KNOBS)
    async with Connection.open(stack.base) as connection:
        for _ in range(2):
            await connection.send("POST", f"/v1/runs/{run_id}/stream", json={})
        for _ in range(2):
            assert (await connection.reply()).body.count(b"data: ") == len(events)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/runs/x/stream HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/runs/x/stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=lambda garbage: repr(garbage[:24]),
)
async def test_what_is_not_http(stack: Stack, garbage: bytes) -> None:
    """Garbage costs its own connection only: nothing, or a refusal; the next client is served."""
    async with Connection.open(stack.base) as connection:
        await connection.send_raw(garbage)
        connection.writer.write_eof()
        said = await asyncio.wait_for(connection.reader.read(), 5)
        assert not said or said.split(b" ")[1] in {b"400", b"404", b"431"}
    assert (await stack.fetch("GET", "/livez")).status == 200


async def test_http_1_0(stack: Stack) -> None:
    """A client of HTTP/1.0 gets bare events, then the end of the connection."""
    run_id, events = await stack.finished(KNOBS)
    async with open_stream(stack.base, f"/v1/runs/{run_id}/stream", {}, version="1.0") as stream:
        assert "transfer-encoding" not in stream.headers
        assert "content-length" not in stream.headers
        assert await stream.rest() == events
        assert await stream.connection.ends()


async def test_http_1_0_live(stack: Stack) -> None:
    """A client of HTTP/1.0 follows a live run, too, chunk by chunk."""
    async with (
        stack.live(1) as (run_id, creator),
        open_stream(stack.base, f"/v1/runs/{run_id}/stream", {}, version="1.0") as stream,
    ):
        assert await stream.take(2) == creator.seen
        stack.puppet.say(run_id)
        assert await stream.take(1) == await creator.take(1)
        stack.puppet.finish(run_id)
        assert await stream.rest() == await creator.rest()


async def test_head_is_refused(stack: Stack) -> None:
    """HEAD is not answered as GET would be: a stream has no head without its body."""
    run_id, _ = await stack.finished(KNOBS)
    paths = [f"/v1/runs/{run_id}", f"/v1/conversations/{await stack.conversation()}", *(await endpoints(stack))[:4]]
    for path in paths:
        async with Connection.open(stack.base) as connection:
            await connection.send("HEAD", path)
            status, headers = await connection.head()
            assert status == 405, path
            assert "HEAD" not in headers["allow"]


@pytest.mark.parametrize("cursor", [None, 2**53, 2**63, 2**64, 10**40, "x", 1.5, [], {}])
async def test_cursor_that_is_none(stack: Stack, cursor: object) -> None:
    """A cursor that is null, no whole number, or larger than a JavaScript client can hold is a 422."""
    run_id, _ = await stack.finished(KNOBS)
    for path in (f"/v1/runs/{run_id}/stream", f"/v1/conversations/{await stack.conversation()}/stream"):
        reply = await stack.fetch("POST", path, json={"starting_after": cursor})
        assert reply.status == 422, reply
        assert "'starting_after'" in reply.detail


async def test_largest_cursor(stack: Stack) -> None:
    """The largest cursor there can be is of another shard, and so says nothing about this run."""
    run_id, events = await stack.finished(KNOBS)
    async with stack.resume(run_id, MAX_SEQ_ID) as stream:
        assert await stream.rest() == events


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": -1},
        {"batch_size": 1},
        {"batch_size": None},
        {"batch_size": 10**12},
        {"poll_interval": None},
        {"poll_interval": -1},
        {"poll_interval": 1e300},
        {"include_pings": None},
        {"starting_after": -1},
        {"starting_after": -(10**40)},
        {"starting_after": "0"},
        {"agent_id": None, "run_id": None, "otid": None},
        None,
    ],
    ids=repr,
)
async def test_options_on_which_the_reference_breaks(stack: Stack, options: dict[str, Any] | None) -> None:
    """Options that crash, starve or hang the reference mean their default, on a live run as on a finished one."""
    async with stack.live(1) as (run_id, creator):
        path = f"/v1/runs/{run_id}/stream"
        async with open_stream(stack.base, path, options) as live:
            stack.puppet.say(run_id)
            stack.puppet.finish(run_id)
            await creator.rest()
            pings = options is None or options.get("include_pings", True)
            expected = creator.seen if pings else creator.seen[1:]
            assert await live.rest() == expected
        async with open_stream(stack.base, path, options) as later:
            assert await later.rest() == expected


async def test_absent_body(stack: Stack) -> None:
    """Without a body a resume starts at the beginning; a message must have one."""
    run_id, events = await stack.finished(KNOBS)
    async with open_stream(stack.base, f"/v1/runs/{run_id}/stream") as stream:
        assert await stream.rest() == events
    for path in (await endpoints(stack))[2:4]:
        for body in (b"", b"null"):
            reply = await post(stack, path, body)
            assert reply.status == 422
            assert "'Field required'" in reply.detail


def said(*otids: object) -> dict[str, Any]:
    """A body whose messages have these otids."""
    return {"messages": [{"role": "user", "content": "x", "otid": otid} for otid in otids]}


APPROVAL = {"type": "approval", "approvals": [{"tool_call_id": "call", "approve": True}]}
TOOL_RETURN = {
    "type": "tool_return",
    "tool_returns": [{"type": "tool", "tool_call_id": "call", "tool_return": "x", "status": "success"}],
}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "Must specify either 'input' or 'messages'."),
        ({"input": None}, "Must specify either 'input' or 'messages'."),
        ({"input": None, "messages": None}, "Must specify either 'input' or 'messages'."),
        ({"background": True}, "Must specify either 'input' or 'messages'."),
        ({"input": "x", "messages": []}, "Cannot specify both 'input' and 'messages'."),
        ({"input": "x", **said("one")}, "Cannot specify both 'input' and 'messages'."),
        ({"input": [{"type": "text", "text": "x"}], **said("one")}, "Cannot specify both 'input' and 'messages'."),
        ({"input": 5}, "Input should be a valid string"),
        ({"messages": "x"}, "Input should be a valid list"),
        ({"messages": [5]}, "'messages', 0"),
        ({"messages": [{"role": "user"}]}, "'content'"),
        (said(5), "Input should be a valid string"),
        (said("o" * 513), "An otid may have at most 512 characters."),
        (said("o" * 10_000), "An otid may have at most 512 characters."),
        (said("first", "\U0001f600" * 513), "An otid may have at most 512 characters."),
        (said("same", "same"), "Each message must have an otid of its own, and 'same' is there twice."),
        (said("same", "between", "same"), "'same' is there twice."),
        ({"messages": [{**APPROVAL, "otid": "same"}, *said("same")["messages"]]}, "'same' is there twice."),
        ({"messages": [{**TOOL_RETURN, "otid": "same"}, *said("same")["messages"]]}, "'same' is there twice."),
        (said(*map(str, range(MAX_OTIDS + 1))), "A request may have at most 64 otids, and this one has 65."),
        (said(*map(str, range(1000))), "A request may have at most 64 otids, and this one has 1000."),
        ({"input": "x", "background": "perhaps"}, "'background'"),
        ({"input": "x", "max_steps": "many"}, "'max_steps'"),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, dict) else None,
)
async def test_message_that_is_none(stack: Stack, body: dict[str, Any], words: str) -> None:
    """A message is one of input and messages, with few, short otids of its own; of anything else nothing is left."""
    agent_id, conversation_id = new_agent_id(), await stack.conversation()
    for path in (
        f"agents/{agent_id}/messages/stream",
        f"conversations/{conversation_id}/messages",
        f"conversations/{agent_id}/messages",
    ):
        reply = await stack.fetch("POST", f"/v1/{path}", json=body)
        assert (reply.status, set(reply.json)) == (422, {"trace_id", "detail"}), path
        assert words in reply.detail
    assert (await stack.fetch("GET", f"/v1/conversations/{conversation_id}")).json["last_message_at"] is None
    has_had_no_run = await stack.fetch("POST", f"/v1/agents/{agent_id}/messages/cancel")
    assert has_had_no_run.status == 409


async def test_empty_otids(stack: Stack) -> None:
    """An empty otid is none: it may be there many times, and does not make two requests the same."""
    agent_id = new_agent_id()
    body = {"messages": [{"role": "user", "content": json.dumps(KNOBS), "otid": ""}] * 2, "background": True}
    answers = [await stack.fetch("POST", f"/v1/agents/{agent_id}/messages/stream", json=body) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].body != answers[1].body


async def test_otid_that_no_request_can_have_had(stack: Stack) -> None:
    """To resume by an otid that is far too long is to ask for what is not there: 404, at once."""
    otid = "o" * 10_000
    reply = await stack.fetch("POST", "/v1/conversations/default/stream", json={"otid": otid})
    assert reply.status == 404
    assert reply.detail.startswith("No run found for otid=ooo")


async def test_as_many_otids_as_may_be(stack: Stack) -> None:
    """A request with the largest number of otids is claimed in one batch, and found by each of them."""
    otids = [new_otid() for _ in range(MAX_OTIDS)]
    messages = [{"role": "user", "content": json.dumps(KNOBS), "otid": otid} for otid in otids]
    async with stack.create("", messages=messages) as stream:
        events = await stream.rest()
    for otid in (otids[0], otids[-1]):
        async with open_stream(stack.base, "/v1/conversations/default/stream", {"otid": otid}) as resumed:
            assert await resumed.rest() == events


@pytest.mark.parametrize(
    "value", ["", "foo", "user-", "user-123E4567-E89B-42D3-8456-426614174000", "user-\xff", "x" * 5000]
)
async def test_bad_user_id(stack: Stack, value: str) -> None:
    """A malformed `user_id` is a 400 wherever it comes."""
    for path in await endpoints(stack):
        reply = await post(stack, path, b"{}", user_id=value)
        assert reply.status == 400
        assert "Invalid user ID format" in reply.detail


@pytest.mark.parametrize(
    "run_id", ["zzz", "RUN-123E4567-E89B-42D3-8456-426614174000", "run-", "run-%00", "run-%ff", "%2e%2e"]
)
async def test_malformed_run_id(stack: Stack, run_id: str) -> None:
    """A malformed run id is a 400, in a path as in a body."""
    conversation_id = await stack.conversation()
    replies = [
        await stack.fetch("GET", f"/v1/runs/{run_id}"),
        await stack.fetch("POST", f"/v1/runs/{run_id}/stream", json={}),
        await stack.fetch("POST", f"/v1/conversations/{conversation_id}/stream", json={"run_id": run_id}),
    ]
    for reply in replies:
        assert reply.status == 400
        assert "Invalid run ID format" in reply.detail


@pytest.mark.parametrize("conversation_id", ["CONV-x", "conv-%0a", "conv-" + "a" * 36, "%00", "a" * 4000, "%C3%A4"])
async def test_malformed_conversation_id(stack: Stack, conversation_id: str) -> None:
    """A malformed conversation id is a 422."""
    path = f"/v1/conversations/{conversation_id}"
    for method, rest in (("GET", ""), ("POST", "/stream"), ("POST", "/messages")):
        assert (await stack.fetch(method, path + rest)).status == 422


async def test_client_that_leaves_within_its_request(stack: Stack) -> None:
    """Half a request and a reset connection leave nothing behind."""
    path = f"/v1/agents/{new_agent_id()}/messages/stream"
    for partial in (b"", b"{", b'{"input": "x'):
        async with Connection.open(stack.base) as connection:
            await connection.send("POST", path, headers={**JSON, "Content-Length": "100"})
            await connection.send_raw(partial)
    async with Connection.open(stack.base) as connection:
        await connection.send("POST", path, headers={**JSON, "Content-Length": "100"})
        connection.writer.write_eof()
        with pytest.raises(Cut):
            await connection.head()
    await stack.nobody_follows()


async def test_a_cancel_with_a_field_that_is_not_known_ends_nothing(stack: Stack) -> None:
    """It may have named the run that was meant, which need not be the newest."""
    agent_id = new_agent_id()
    async with stack.live(1, agent_id=agent_id) as (run_id, _):
        path = f"/v1/agents/{agent_id}/messages/cancel"
        refused = await stack.fetch("POST", path, json={"run_id": new_run_id()})
        assert (refused.status, "extra_forbidden" in refused.detail) == (422, True)
        assert not (await stack.record(run_id)).is_terminal
