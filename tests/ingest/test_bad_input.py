"""What cannot be used is refused in words, with a type for programs, and nothing of it is half done."""

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from runstream.schemas import new_agent_id, new_run_id
from tests.support.http import Connection, Reply, fetch
from tests.support.ingest import NDJSON, Writer, content_of, lines, numbers_of, open_run, said, told, writing
from tests.support.stack import Stack

AGENT = new_agent_id()
JSON = {"Content-Type": "application/json"}


@pytest_asyncio.fixture
async def run(broker: str) -> AsyncIterator[Writer]:
    """A run that goes on."""
    async with writing(broker) as writer:
        yield writer


async def stands_at(run: Writer, count: int) -> None:
    """Check that a run goes on, and has so many chunks."""
    reply = await run.post("chunks", [])
    assert (reply.status, reply.json["index"]) == (200, count)


# -- opening ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "agent_id: Field required"),
        ({"agent_id": "agent-1"}, "agent-<uuid4>"),
        ({"agent_id": AGENT.upper()}, "agent-<uuid4>"),
        ({"agent_id": AGENT, "conversation_id": "default"}, "conv-<uuid4>"),
        ({"agent_id": AGENT, "otids": [f"otid {n}" for n in range(65)]}, "at most 64 otids"),
        ({"agent_id": AGENT, "otids": ["o" * 10_240]}, "at most 512 characters"),
        ({"agent_id": AGENT, "otids": ["a", "b", "a"]}, "'a' is there twice"),
        ({"agent_id": AGENT, "otids": "a"}, "otids: "),
        ({"agent_id": AGENT, "otids": [1]}, "otids.0: "),
        ({"agent_id": AGENT, "background": "yes"}, "background: "),
        ({"agent_id": AGENT, "convesation_id": None}, "convesation_id: Extra inputs"),
        ([], "the body: "),
        (None, "the body: "),
    ],
)
async def test_an_opening_that_makes_no_sense(broker: str, body: Any, why: str) -> None:
    """The field is named, and what is wrong with it."""
    refused = await fetch(broker, "POST", "/ingest/v1/runs", json=body)
    assert told(refused) == (422, "invalid_request")
    assert why in refused.detail


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"agent_id": NaN}', b'{"agent_id": "\xff"}', b'{"otids": ["\\ud83d"]}', b"[" * 100_000],
    ids=["empty", "half", "no number", "no UTF-8", "half a character", "endless"],
)
async def test_an_opening_that_is_no_json(broker: str, body: bytes) -> None:
    """Whatever it is, it is not read."""
    refused = await fetch(broker, "POST", "/ingest/v1/runs", body=body, headers=JSON)
    assert told(refused) == (422, "invalid_request")


async def test_sixty_four_otids_and_null_fields_are_well(broker: str) -> None:
    """The bounds are within, and null stands for what is not given."""
    for body in ({"otids": ["o" * 512, *map(str, range(63))]}, {"otids": None, "conversation_id": None}):
        reply = await open_run(broker, **body)
        assert reply.status == 201, reply
        assert (await Writer(broker, reply.json["run_id"], 0).end()).status == 200


# -- chunks -------------------------------------------------------------------------------------------------------

NO_CHUNKS: list[tuple[bytes, str]] = [
    (b"[]", "not a JSON object"),
    (b'"text"', "not a JSON object"),
    (b"7", "not a JSON object"),
    (b"null", "not a JSON object"),
    (b"{}", "an empty object"),
    (b'{"seq_id": 3}', "an empty object"),
    (b'{"a": 1', "not a JSON object"),
    (b'{"a": "\x01"}', "not a JSON object"),
    (b'{"a": 1} {"b": 2}', "not a JSON object"),
    (b'{"a": NaN}', "not a JSON object"),
    (b'{"message_type": "stop_reason", "stop_reason": "end_turn"}', "/end"),
    (b'{"message_type": "usage_statistics"}', "/end"),
    (b'{"message_type": "error_message", "message": "m"}', "/fail"),
    (b'{"a": ' + b"[" * 100_000, "not a JSON object"),
]


@pytest.mark.parametrize(("bad", "why"), NO_CHUNKS, ids=range(len(NO_CHUNKS)))
async def test_what_is_no_chunk(stack: Stack, run: Writer, bad: bytes, why: str) -> None:
    """Alone or in an array nothing is stored; of lines those before it are, and those after it are not looked at."""
    good = lines(said(0), said(1))
    if bad != b"[]":  # By itself it is an array, and empty.
        alone = await run.post("chunks", body=bad, headers=JSON)
        assert told(alone) == (422, "invalid_chunk")
        assert why in alone.detail
        assert len(alone.detail) < 500
    array = await run.post("chunks", body=b'[{"content": "9 "}, ' + bad + b"]", headers=JSON)
    assert told(array) == (422, "invalid_chunk")
    await stands_at(run, 0)
    refused = await run.append_lines(good + bad + b"\n" + lines(said(2)))
    assert told(refused) == (422, "invalid_chunk")
    assert why in refused.detail
    assert refused.detail.startswith("Line 3 ")
    assert [refused.json[name] for name in ("line", "stored", "index")] == [3, 2, 2]
    assert (await run.append_lines(lines(said(2)), expected_index=2)).status == 200
    await run.end()
    assert await numbers_of(stack, run.run_id) == [0, 1, 2]


async def test_a_bad_item_is_named(run: Writer) -> None:
    """From 0 on, as programs count; blank lines count as lines, from 1 on, as people do."""
    refused = await run.post("chunks", [said(0), said(1), 7])
    assert (told(refused), refused.json["item"]) == ((422, "invalid_chunk"), 2)
    refused = await run.append_lines(b"\n\n" + lines(said(0)) + b"\nnothing")
    assert (refused.json["line"], refused.json["stored"]) == (5, 1)


async def test_what_is_not_utf8(stack: Stack, run: Writer) -> None:
    """Neither a body, of which nothing is stored, nor a line; what a decoder would have made of it is not stored."""
    bad = b'{"content": "\xff"}'
    assert told(await run.post("chunks", body=bad, headers=JSON)) == (422, "invalid_request")
    refused = await run.append_lines(lines(said(0)) + bad + b"\n")
    assert (told(refused), refused.json["line"], refused.json["stored"]) == ((422, "invalid_chunk"), 2, 1)
    await run.end()
    assert await numbers_of(stack, run.run_id) == [0]


async def test_a_chunk_is_stored_as_it_was_written(stack: Stack, run: Writer) -> None:
    """Its values are nobody's to change, but for a seq_id and a run_id, which are ours, and half a character."""
    written = (
        '{"message_type":"of_tomorrow","seq_id":7,"run_id":"run-1","n":1e400,"m":1.0,'
        '"o":{"k":1, "k":2},"c":"é","h":"\\ud83d"}'
    )
    assert (await run.append_lines(written.encode() + b"\r\n")).status == 200
    pretty = b'\n {"a":\r\n [1,\r 2]}\n'
    assert (await run.post("chunks", body=pretty, headers=JSON)).status == 200
    assert (await run.append_lines(b'{"a":[1,\r2]}\n')).status == 200
    await run.end()
    async with stack.resume(run.run_id) as stream:
        _, first, second, third, *_ = await stream.rest()
    kept = written.replace('"seq_id":7,', "").replace('"run-1"', f'"{run.run_id}"').replace("\\ud83d", "\\ufffd")
    assert first.data == f'{kept[:-1]},"seq_id":{first.seq_id}}}'
    assert [event.json["a"] for event in (second, third)] == [[1, 2], [1, 2]]


async def test_what_is_too_large(stack: Stack, run: Writer) -> None:
    """A chunk, alone, in an array and as a line, ended or not; the run goes on."""
    limit = 2**20 - 1024
    huge = json.dumps({"content": "0 ".ljust(limit + 1)}).encode()
    for body in (huge, b"[" + huge + b"]"):
        assert told(await run.post("chunks", body=body, headers=JSON)) == (413, "chunk_too_large")
    for body in (lines(said(0)) + huge + b"\n", huge):
        refused = await run.append_lines(body)
        assert told(refused) == (413, "chunk_too_large")
        assert refused.json["line"] == refused.json["stored"] + 1
    room = limit - len(f'{{"message_type":"x","content":"","run_id":"{run.run_id}"}}')
    for size, status in ((room, 200), (room + 1, 413)):
        assert (await run.post("chunks", {"message_type": "x", "content": "1 ".ljust(size)})).status == status
    await run.end()
    assert await numbers_of(stack, run.run_id) == [0, 1]


async def test_a_body_that_is_too_large(run: Writer) -> None:
    """By what it says of itself, and by what it has: 8 MiB; more is for an upload."""
    path = f"/ingest/v1/runs/{run.run_id}/chunks"
    async with Connection.open(run.base) as connection:
        await connection.send("POST", path, headers={**JSON, "Content-Length": str(9 * 2**20)})
        assert told(await connection.reply()) == (413, "body_too_large")
    async with Connection.open(run.base) as connection:
        await connection.send("POST", path, headers={**JSON, "Transfer-Encoding": "chunked"})
        for _ in range(9):
            await connection.send_raw(b"100000\r\n" + b" " * 2**20 + b"\r\n")
        assert told(await connection.reply()) == (413, "body_too_large")
    packed = gzip.compress(b" " * 9 * 2**20)
    refused = await run.post("chunks", body=packed, headers={**JSON, "Content-Encoding": "gzip"})
    assert told(refused) == (413, "body_too_large")
    await stands_at(run, 0)


async def test_an_encoding_that_is_broken(run: Writer) -> None:
    """Nothing of a body is stored, of lines those that could be read."""
    refused = await run.post("chunks", body=b"no gzip", headers={**JSON, "Content-Encoding": "gzip"})
    assert told(refused) == (422, "invalid_request")
    packed = gzip.compress(lines(*map(said, range(500))))
    refused = await run.post(
        "chunks", body=packed[:-10] + b"not its end", headers={**NDJSON, "Content-Encoding": "gzip"}
    )
    assert refused.status == 422, refused
    await stands_at(run, refused.json["stored"])


@pytest.mark.parametrize("kind", [JSON, NDJSON], ids=["whole", "lines"])
async def test_every_encoding_is_read_or_refused(run: Writer, kind: dict[str, str]) -> None:
    """As at the gateway: several members are one body, deflate is read in both its forms, and another is 415."""
    body = lines(said(0))
    for encoding, packed, answer in (
        ("gzip", gzip.compress(body[:20]) + gzip.compress(body[20:]), 200),
        ("deflate", zlib.compress(body), 200),
        ("deflate", zlib.compress(body, wbits=-zlib.MAX_WBITS), 200),
        ("identity", body, 200),
        ("zstd", body, 415),
        ("gzip, gzip", gzip.compress(gzip.compress(body)), 415),
    ):
        reply = await run.post("chunks", body=packed, headers={**kind, "Content-Encoding": encoding})
        assert reply.status == answer, (encoding, reply)
    await stands_at(run, 4)


async def test_a_body_of_very_many_values(run: Writer) -> None:
    """It is not looked at one by one."""
    for body in ({"run_ids": [0] * 60_000}, {str(name): 0 for name in range(60_000)}):
        refused = await run.post("end", {"stop_reason": "end_turn", **body})
        assert told(refused) == (413, "body_too_large")
    await stands_at(run, 0)


# -- everything else ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["-1", "1.5", "one", "", "1e3", "٣", "9" * 30])
async def test_an_index_that_is_none(run: Writer, value: str) -> None:
    """It is not taken for absent: then a retry would store its chunks twice."""
    headers = {"Expected-Index": value}
    for what, body in (
        ("chunks", said(0)),
        ("end", {"stop_reason": "end_turn"}),
        ("fail", {"error_type": "x", "message": "y"}),
    ):
        try:
            refused = await run.post(what, body, headers=headers)
        except UnicodeEncodeError:
            headers = {"Expected-Index": "\xb2"}  # A digit to Python, in what HTTP's headers may hold.
            refused = await run.post(what, body, headers=headers)
        assert told(refused) == (422, "invalid_request")
    await stands_at(run, 0)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "application/octet-stream"])
async def test_a_media_type_that_is_not_read(run: Writer, kind: str) -> None:
    """It is said which are; curl sends the first of these when it is told nothing."""
    for what in ("chunks", "end", "fail"):
        refused = await run.post(what, body=b"{}", headers={"Content-Type": kind})
        assert told(refused) == (415, "unsupported_media_type")
        assert "application/json" in refused.detail
    await stands_at(run, 0)


@pytest.mark.parametrize(
    "kind", ["application/x-ndjson", "application/ndjson", "application/jsonl; charset=utf-8", "APPLICATION/X-NDJSON"]
)
async def test_lines_have_many_names(run: Writer, kind: str) -> None:
    """Nobody has settled on one."""
    reply = await run.post("chunks", body=lines(said(0), said(1)), headers={"Content-Type": kind})
    assert (reply.status, reply.json["stored"]) == (200, 2)


async def test_a_body_that_does_not_say_what_it_is_is_json(run: Writer) -> None:
    """As at the gateway."""
    assert (await run.post("chunks", body=json.dumps([said(0), said(1)]).encode())).json["stored"] == 2


async def test_an_empty_body(run: Writer) -> None:
    """Of no lines at all it is a sign of life; it is no JSON."""
    assert (await run.append_lines(b"")).json["stored"] == 0
    assert told(await run.post("chunks", body=b"", headers=JSON)) == (422, "invalid_chunk")
    for what in ("end", "fail"):
        assert told(await run.post(what, body=b"", headers=JSON)) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("what", "body", "why"),
    [
        ("end", {}, "stop_reason: Field required"),
        ("end", {"stop_reason": ""}, "stop_reason: "),
        ("end", {"stop_reason": "end_trun"}, "stop_reason: Input should be 'end_turn'"),
        ("fail", {"error_type": "mine"}, "the catalogue has no text for 'mine': give a message"),
        ("end", {"stop_reason": "end_turn", "usage": {"total_tokens": "7"}}, "usage.total_tokens: "),
        ("end", {"stop_reason": "end_turn", "usage": {"tokens": 7}}, "usage.tokens: "),
        ("end", {"stop_reason": "end_turn", "usage": {"total_tokens": 10**30}}, "usage.total_tokens: "),
        ("fail", {"message": "m"}, "error_type: Field required"),
        ("fail", {"error_type": 7}, "error_type: "),
        ("fail", {"error_type": "x", "message": 7}, "message: "),
    ],
)
async def test_an_ending_that_makes_no_sense(run: Writer, what: str, body: object, why: str) -> None:
    """The field is named, and the run goes on."""
    refused = await run.post(what, body)
    assert told(refused) == (422, "invalid_request")
    assert why in refused.detail
    await stands_at(run, 0)


@pytest.mark.parametrize("what", ["chunks", "lease", "end", "fail"])
async def test_a_run_that_is_not_there(broker: str, what: str) -> None:
    """404; and 422 for what is not even the name of one."""
    bodies = {
        "chunks": said(0),
        "end": {"stop_reason": "end_turn"},
        "fail": {"error_type": "x", "message": "y"},
        "lease": {},
    }
    refused = await Writer(broker, new_run_id(), 0).post(what, bodies[what])
    assert told(refused) == (404, "run_not_found")
    for name in ("run-1", new_run_id().upper(), "%00"):
        assert told(await Writer(broker, name, 0).post(what, bodies[what])) == (422, "invalid_request")


async def test_what_is_not_there(broker: str) -> None:
    """JSON, too, for a path or a method that there is not."""
    for method, path in (
        ("GET", "/ingest/v1/runs"),
        ("POST", "/ingest/v1/run"),
        ("PUT", "/ingest/v2/runs"),
        ("GET", "/"),
        ("POST", "/v1/runs"),
        ("DELETE", "/livez"),
    ):
        refused = await fetch(broker, method, path)
        assert told(refused) == (404, "not_found")
        assert f"{method} {path}" in refused.detail


async def test_requests_are_counted(stack: Stack, run: Writer) -> None:
    """By operation and by what came of them, and no label names a run."""
    await run.append(0, 1)
    await run.append(7, expected_index=9)
    async with run.upload() as upload:
        await upload.say(2)
        metrics = await metrics_of(stack)
        await upload.finish()
    assert 'runstream_ingest_requests_total{operation="append",outcome="ok"}' in metrics
    assert 'runstream_ingest_requests_total{operation="append",outcome="wrong_index"}' in metrics
    assert "runstream_ingest_uploads 1.0" in metrics
    assert "run-" not in metrics
    await run.end()
    assert len(await content_of(stack, run.run_id)) == 3


async def metrics_of(stack: Stack) -> str:
    """What the broker counts."""
    reply: Reply = await fetch(stack.broker_base, "GET", "/metrics")
    return reply.body.decode()


async def test_an_id_that_is_a_number_too_large(run: Writer, stack: Stack) -> None:
    """What can be stored can be read: the run's messages have it as it came."""
    body = b'{"message_type":"assistant_message","id":1e999,"content":"x"}'
    stored = await run.post("chunks", body=body, headers=JSON)
    assert stored.status == 200
    listed = await stack.fetch("GET", f"/v1/runs/{run.run_id}/messages")
    assert listed.status == 200
    assert b'"id":1e999' in listed.body


@pytest.mark.parametrize("stop_reason", ["a\r\nRs-Kind: data", "\x00", " a", "\u2028"], ids=repr)
async def test_a_stop_reason_that_no_header_can_have(run: Writer, stop_reason: str) -> None:
    """It is refused, and the run goes on."""
    refused = await run.post("end", {"stop_reason": stop_reason})
    assert told(refused) == (422, "invalid_request")
    assert "stop_reason: Input should be" in refused.detail
    await stands_at(run, 0)


async def test_no_run_is_opened_in_a_deleted_conversation(broker: str, stack: Stack) -> None:
    """Its writer is told so, and nothing is opened."""
    conversation_id = await stack.conversation()
    assert (await stack.fetch("DELETE", f"/v1/conversations/{conversation_id}")).status == 200
    body = {"agent_id": AGENT, "conversation_id": conversation_id}
    refused = await fetch(broker, "POST", "/ingest/v1/runs", json=body)
    assert told(refused) == (404, "conversation_deleted")
    stored = await stack.index.conversation("default", conversation_id)
    assert stored is not None
    assert (stored.value.deleted, stored.value.active_run) == (True, None)


async def test_otids_that_leave_no_room(broker: str) -> None:
    """As many and as long as they may be, they can be kept by a server with NATS's default."""
    otids = [f"{n:02}".ljust(512, "\x01") for n in range(64)]
    async with writing(broker, otids=otids) as writer:
        ended = await writer.post("fail", {"error_type": "x" * 300, "message": "漢" * 9000, "detail": "\x01" * 9000})
        assert ended.status == 200


async def test_no_run_is_opened_in_another_agents_conversation(broker: str, stack: Stack) -> None:
    """A copied id does not go unnoticed: its writer is told whose conversation it is."""
    conversation_id = await stack.conversation()
    whose = (await stack.fetch("GET", f"/v1/conversations/{conversation_id}")).json["agent_id"]
    refused = await fetch(
        broker, "POST", "/ingest/v1/runs", json={"agent_id": AGENT, "conversation_id": conversation_id}
    )
    assert (*told(refused), refused.json["agent_id"]) == (409, "wrong_agent", whose)
    assert (await stack.fetch("POST", f"/v1/conversations/{conversation_id}/cancel")).status == 409
