"""A request that costs its sender next to nothing keeps nobody else waiting."""

import gzip
import os
from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.http import Connection, Reply
from tests.support.ingest import NDJSON, Writer, told, writer_of, writing
from tests.support.stack import stack_running
from tests.support.turns import in_short_turns
from tests.support.waiting import wait_until

PACKED = {**NDJSON, "Content-Encoding": "gzip"}
PATIENCE_SECONDS = 0.4
"""CPU of one turn: a hundred times what it should have, and a tenth of what it had."""


@pytest_asyncio.fixture
async def run(broker: str) -> AsyncIterator[Writer]:
    """A run that goes on."""
    async with writing(broker) as writer:
        yield writer


async def posted(run: Writer, body: bytes, headers: dict[str, str]) -> Reply:
    """Append, and see that others have had their turn meanwhile."""
    return await in_short_turns(PATIENCE_SECONDS, lambda: run.post("chunks", body=body, headers=headers))


async def test_an_upload_that_is_almost_nothing_but_its_compression(run: Writer) -> None:
    """It is refused when it has become a hundred times as large, and not read to its end."""
    refused = await posted(run, gzip.compress(b"\n" * 30_000_000), PACKED)
    assert told(refused) == (413, "body_too_large")
    assert "unpacks to more than 100 times" in refused.detail


async def test_an_upload_of_very_many_members(run: Writer) -> None:
    """Each of them costs something, though there is nothing in it."""
    assert (await posted(run, gzip.compress(b"") * 100_000, PACKED)).json["stored"] == 0


async def test_an_upload_of_signs_of_life(run: Writer) -> None:
    """Nothing of it is stored, so there is nothing that it waits for."""
    ping = b'{"message_type":"ping"}\n'
    noise = b"".join(b'{"message_type":"ping","x":"%s"}\n' % os.urandom(200).hex().encode() for _ in range(400))
    body = b"".join(ping * 1000 + line + b"\n" for line in noise.splitlines())
    assert (await posted(run, gzip.compress(body), PACKED)).json["stored"] == 0


async def test_an_array_of_very_many_chunks(run: Writer) -> None:
    """How many there are is seen before any of them is looked at."""
    body = b"[" + b",".join([b'{"a":1}'] * 1_040_000) + b"]"
    refused = await posted(run, body, {"Content-Type": "application/json"})
    assert told(refused) == (413, "body_too_large")
    assert "1040000 items; at most 10000" in refused.detail


async def test_a_broker_has_its_hands_full(nats_url: str) -> None:
    """Uploads and other requests are counted, each by themselves; who comes too late is told to come again."""
    async with stack_running(nats_url, broker={"ingest_uploads": 1, "ingest_requests": 1}) as stack:
        run = await writer_of(stack.broker_base)

        async def is_stored() -> bool:
            return await stack.tip(await stack.record(run.run_id)) > run.first_seq

        async with run.upload() as upload:
            await upload.say(0)
            await wait_until(is_stored)
            refused = await run.append_lines(b"")
            assert (told(refused), refused.headers["retry-after"]) == ((503, "broker_busy"), "2")
            async with Connection.open(run.base) as half:
                path = f"/ingest/v1/runs/{run.run_id}/chunks"
                await half.send("POST", path, headers={"Content-Length": "9", "Expect": "100-continue"})
                await half.reader.readuntil(b"\r\n\r\n")  # It is served from here on.
                assert told(await run.end()) == (503, "broker_busy")
                await half.send_raw(b"[       ]")
                assert (await half.reply()).status == 200
            assert (await upload.finish()).json["stored"] == 1
        assert (await run.end()).status == 200
