"""A request that costs its sender next to nothing keeps nobody else waiting."""

import gzip
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.http import Reply
from tests.support.ingest import NDJSON, Writer, told, writing
from tests.support.turns import longest_turn

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
    async with longest_turn() as turn:
        reply = await run.post("chunks", body=body, headers=headers)
    assert turn.longest < PATIENCE_SECONDS
    return reply


async def test_an_upload_that_is_almost_nothing_but_its_compression(run: Writer) -> None:
    """It is refused when it has become a hundred times as large, and not read to its end."""
    refused = await posted(run, gzip.compress(b"\n" * 30_000_000), PACKED)
    assert told(refused) == (413, "body_too_large")
    assert "unpacks to more than 100 times" in refused.detail


async def test_an_upload_of_very_many_members(run: Writer) -> None:
    """Each of them costs something, though there is nothing in it."""
    assert (await posted(run, gzip.compress(b"") * 100_000, PACKED)).json["stored"] == 0


@pytest.mark.parametrize("line", [b"\n", b'{"message_type":"ping"}\n'], ids=["empty", "ping"])
async def test_an_upload_of_signs_of_life(run: Writer, line: bytes) -> None:
    """Nothing of it is stored, so there is nothing that it waits for."""
    assert (await posted(run, line * (4_000_000 // len(line)), NDJSON)).json["stored"] == 0
