"""Programs that are not ours: curl, httpx and aiohttp write runs, and letta-client reads them meanwhile."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import httpx
from letta_client import AsyncLetta

from runstream.schemas import new_agent_id
from tests.support.documents import blocks_below
from tests.support.http import DONE
from tests.support.ingest import NDJSON, lines, numbers_of, said, writer_of
from tests.support.letta import Reader, as_json, chunks_of, types_of, whole
from tests.support.stack import Stack


async def test_letta_client_reads_a_run_while_it_is_written(stack: Stack, broker: str) -> None:
    """It follows the run live, loses its connection, and comes back for the rest: nothing is missing or twice."""
    run = await writer_of(broker)
    async with AsyncLetta(base_url=stack.base, api_key="none") as letta, run.upload() as upload:
        await upload.say(0)
        stream = await letta.runs.messages.stream(run.run_id, starting_after=0)
        seen = []
        async with stream:
            async for chunk in stream:
                seen.append(as_json(chunk))
                if len(seen) == 4:
                    break
                await upload.say(len(seen))
        await upload.say(4, 5, 6)
        rest = asyncio.create_task(read(letta, run.run_id, seen[-1]["seq_id"]))
        await upload.say(7)
        assert (await upload.finish()).json["stored"] == 8
        assert (await run.end(usage={"total_tokens": 3})).status == 200
        seen += await rest
        assert seen == await whole(letta, run.run_id)
        record = await letta.runs.retrieve(run.run_id)
    assert types_of(seen) == ["ping", *["assistant_message"] * 8, "stop_reason", "usage_statistics"]
    assert [int(chunk["content"]) for chunk in seen[1:-2]] == [*range(8)]
    assert (record.status, record.stop_reason) == ("completed", "end_turn")


async def read(letta: AsyncLetta, run_id: str, after: int) -> list[dict[str, object]]:
    """A run after a cursor, to its end."""
    return [chunk async for chunk in chunks_of(await letta.runs.messages.stream(run_id, starting_after=after))]


async def test_httpx_and_aiohttp_write_a_run(stack: Stack, broker: str) -> None:
    """A generator is an upload; an object is a request."""
    run = await writer_of(broker)
    url = f"{broker}/ingest/v1/runs/{run.run_id}/chunks"

    async def spoken(begin: int) -> AsyncIterator[bytes]:
        for number in range(begin, begin + 10):
            yield lines(said(number))

    async with httpx.AsyncClient() as client:
        reply = await client.post(url, content=spoken(0), headers=NDJSON)
        assert (reply.status_code, reply.json()["index"]) == (200, 10)
        reply = await client.post(url, json=[said(10), said(11)], headers={"Expected-Index": "10"})
        assert reply.json()["index"] == 12
    async with aiohttp.ClientSession() as session, session.post(url, data=spoken(12), headers=NDJSON) as answer:
        assert (answer.status, (await answer.json())["index"]) == (200, 22)
    await run.end()
    assert await numbers_of(stack, run.run_id) == [*range(22)]


async def test_the_guides_curl_lines_work_as_they_stand(stack: Stack, tmp_path: Path) -> None:
    """They open a run, append to it, end it and read it, at whatever ports there are."""
    (script,) = blocks_below("docs/guides/ingest.md", "A whole run with curl", "sh")
    for port, base in (("8283", stack.base), ("8284", stack.broker_base)):
        script = script.replace(f"localhost:{port}", urlsplit(base).netloc)
    ran = await asyncio.to_thread(
        subprocess.run, ["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30
    )
    assert ran.returncode == 0, ran
    answers = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert [answer.get("index", answer.get("status")) for answer in answers] == [1, 4, "completed"]
    events = [line.removeprefix("data: ") for line in ran.stdout.splitlines() if line.startswith("data: ")]
    assert events[-1] == DONE.data
    said_in_it = [json.loads(event).get("content") for event in events[:-1]]
    assert "".join(filter(None, said_in_it)) == "What is said is stored first. "


async def test_a_reader_does_not_notice_that_a_run_moves_between_brokers(
    stack: Stack, broker: str, other_broker: str
) -> None:
    """Its writer changes brokers with every append."""
    run = await writer_of(broker, agent_id=new_agent_id())
    async with AsyncLetta(base_url=stack.base, api_key="none") as letta:
        reading = asyncio.create_task(Reader(letta, run.run_id).read_to_the_end())
        for number in range(10):
            reply = await run.at((broker, other_broker)[number % 2]).append(number, expected_index=number)
            assert reply.json["index"] == number + 1
        await run.at(other_broker).end()
        seen = await reading
    assert [int(chunk["content"]) for chunk in seen if "content" in chunk] == [*range(10)]
