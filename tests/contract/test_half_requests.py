"""Requests whose bodies do not arrive, or not as they were announced."""

import asyncio
import gzip
import zlib

from runstream.schemas import new_agent_id
from tests.support.http import Connection, encoded
from tests.support.stack import message, stack_running

JSON = {"Content-Type": "application/json"}


async def test_half_a_request_is_given_up(nats_url: str) -> None:
    """A body that does not come is 408 after its time, and the connection is closed; others are not disturbed."""
    async with stack_running(nats_url, gateway={"body_seconds": 0.3}) as stack:
        path = f"/v1/agents/{new_agent_id()}/messages/stream"
        async with Connection.open(stack.base) as half:
            await half.send_raw(f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n{{".encode())
            whole = await stack.fetch("POST", path, json=message({"chunks": 1, "interval_ms": 0}))
            assert whole.status == 200
            reply = await half.reply()
            assert (reply.status, reply.detail) == (408, "The request body was not there after 0.3 s.")
            assert reply.headers["connection"] == "close"


async def test_what_comes_behind_late_bodies_is_answered(nats_url: str) -> None:
    """On one connection, however many requests were begun with half of their bodies there, on either port."""
    asked = b"POST /%s HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n%s\r\n\r\n%s"
    behind = b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n"
    bodies = [(b"Transfer-Encoding: chunked", b"1\r\n{", b"\r\n0\r\n\r\n"), (b"Content-Length: 2", b"{", b"{")]
    async with stack_running(nats_url) as stack:
        paths = {stack.base: f"v1/agents/{new_agent_id()}/messages", stack.broker_base: "ingest/v1/runs"}
        for base, path in paths.items():
            async with Connection.open(base) as connection:
                for framing, half, rest in bodies * 3:
                    await connection.send_raw(asked % (path.encode(), framing, half))
                    assert await connection.head() == (100, {}), "it is not begun"
                    await connection.send_raw(rest + behind * 5)
                    replies = [await connection.reply() for _ in range(6)]
                    assert [each.status for each in replies] == [422, *[200] * 5]


async def test_a_body_that_is_not_framed(nats_url: str) -> None:
    """A chunk that is none is refused at once, on either port, and the connection is closed; the next is served."""
    async with stack_running(nats_url) as stack:
        for base, path, status in (
            (stack.base, f"/v1/agents/{new_agent_id()}/messages", 400),
            (stack.broker_base, "/ingest/v1/runs", 422),
        ):
            async with Connection.open(base) as broken, asyncio.timeout(5):
                await broken.send("POST", path, headers={**JSON, "Transfer-Encoding": "chunked"})
                await broken.send_raw(b"1\r\n{\r\n")
                await asyncio.sleep(0.05)  # what comes with the head never gets to be a body
                await broken.send_raw(b"ZZ\r\n")
                reply = await broken.reply()
                assert (reply.status, reply.headers["connection"]) == (status, "close")
                assert "The request body is not framed as its headers say." in reply.detail
        assert (await stack.fetch("GET", "/livez")).status == 200


async def test_a_body_that_is_not_compressed_as_it_says(nats_url: str) -> None:
    """A broken gzip body is 400; a whole one is read."""
    async with stack_running(nats_url) as stack:
        path = f"/v1/agents/{new_agent_id()}/messages/stream"
        packed = {**JSON, "Content-Encoding": "gzip"}
        broken = await stack.fetch("POST", path, body=b"no gzip", headers=packed)
        assert (broken.status, broken.detail) == (400, "There was an error parsing the body")
        said = gzip.compress(encoded(message({"chunks": 1, "interval_ms": 0})))
        async with asyncio.timeout(10):
            assert (await stack.fetch("POST", path, body=said, headers=packed)).status == 200


async def test_compressed_bodies_are_bounded_as_others_are(nats_url: str) -> None:
    """What unpacks to more than may be is 413, half of one is 400, and what is not read here 415."""
    async with stack_running(nats_url) as stack:
        path = f"/v1/agents/{new_agent_id()}/messages/stream"
        said = encoded(message({"chunks": 1, "interval_ms": 0}))
        for encoding, packed, status in (
            ("gzip", gzip.compress(b" " * 50_000_000), 413),
            ("gzip", gzip.compress(said)[:-8], 400),
            ("GZip", gzip.compress(said), 200),
            ("gzip", gzip.compress(said[:20]) + gzip.compress(b"") + gzip.compress(said[20:]), 200),
            ("gzip", gzip.compress(said) + gzip.compress(b"}"), 422),
            ("gzip", gzip.compress(said) + b"rubbish", 400),
            ("deflate", zlib.compress(said), 200),
            ("deflate", zlib.compress(said, wbits=-zlib.MAX_WBITS), 200),
            ("deflate", zlib.compress(said) + zlib.compress(said), 400),
            ("identity", said, 200),
            ("zstd", said, 415),
            ("gzip, gzip", gzip.compress(gzip.compress(said)), 415),
        ):
            reply = await stack.fetch("POST", path, body=packed, headers={**JSON, "Content-Encoding": encoding})
            assert reply.status == status, encoding
