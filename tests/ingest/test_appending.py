"""Expected-Index: a repeated append stores nothing twice, wherever it was cut, and nobody writes over another."""

import asyncio
import itertools

import pytest

from runstream.broker.publisher import Publisher
from runstream.broker.topology import LogAddress
from tests.support.ingest import content_of, lines, numbers_of, said, told, writer_of
from tests.support.stack import Stack


@pytest.mark.parametrize("cut", range(6))
@pytest.mark.parametrize("form", ["array", "lines"])
async def test_a_retried_append_stores_what_is_missing(
    stack: Stack, broker: str, other_broker: str, cut: int, form: str
) -> None:
    """However much of five chunks was stored before the answer was lost, the same request stores the rest, once."""
    run = await writer_of(broker)
    await run.append(0, 1)
    if cut:
        assert (await run.append(*range(2, 2 + cut))).status == 200
    again = run.at(other_broker)
    numbers = range(2, 7)
    if form == "array":
        reply = await again.append(*numbers, expected_index=2)
    else:
        reply = await again.append_lines(lines(*map(said, numbers)), expected_index=2)
    # What was cut off was longer than what is sent: its sixth chunk is beyond.
    assert reply.status == 200, reply
    assert (reply.json["stored"], reply.json["index"]) == (5, 7)
    await run.end()
    chunks = await content_of(stack, run.run_id)
    assert [int(chunk["content"]) for chunk in chunks] == [*range(7)]
    assert chunks[6]["seq_id"] == reply.json["last_seq_id"]


async def test_an_older_append_is_known_again_among_many(stack: Stack, broker: str) -> None:
    """Whole or in part, from any place of a long log in a stream that others share, in few requests."""
    run, neighbour = await writer_of(broker), await writer_of(broker)
    for begin, end in itertools.pairwise((0, 3, 100, 101, 300)):
        await run.append(*range(begin, end))
        await neighbour.append(*range(begin, begin + (50 if begin == 100 else 7)))
    for begin, end in ((0, 1), (0, 300), (1, 5), (99, 103), (150, 151), (298, 300), (299, 300), (300, 300)):
        reply = await run.append(*range(begin, end), expected_index=begin)
        assert (reply.status, reply.json.get("stored"), reply.json["index"]) == (200, end - begin, end), (begin, reply)
    assert (await run.append(*range(295, 305), expected_index=295)).json["index"] == 305
    await asyncio.gather(run.end(), neighbour.end())
    assert await numbers_of(stack, run.run_id) == [*range(305)]


@pytest.mark.parametrize(
    ("expected", "numbers", "why"),
    [
        (4, [3], "4 chunks are expected to be stored, and 3 are."),
        (1, [1, 7, 3], "Chunk 2 is stored already"),
        (0, [9], ""),
    ],
)
async def test_a_wrong_index_stores_nothing_and_is_told_the_right_one(
    stack: Stack, broker: str, expected: int, numbers: list[int], why: str
) -> None:
    """Too great, or with other chunks than those that are there."""
    run = await writer_of(broker)
    await run.append(0, 1, 2)
    refused = await run.append(*numbers, expected_index=expected)
    assert told(refused) == (409, "wrong_index")
    assert why in refused.detail
    assert (refused.json["index"], refused.json["stored"]) == (3, 0)
    assert (await run.append(3, expected_index=refused.json["index"])).status == 200
    await run.end()
    assert await numbers_of(stack, run.run_id) == [0, 1, 2, 3]


async def test_pings_have_no_place(stack: Stack, broker: str) -> None:
    """They are not stored, not counted and not compared."""
    run = await writer_of(broker)
    ping = {"message_type": "ping"}
    for _ in range(2):
        reply = await run.post("chunks", [ping, said(0), ping, said(1), ping], expected_index=0)
        assert (reply.status, reply.json["stored"], reply.json["index"]) == (200, 2, 2)
    nothing = await run.post("chunks", [])
    assert nothing.json == {"stored": 0, "last_seq_id": reply.json["last_seq_id"], "index": 2}
    await run.end()
    assert await numbers_of(stack, run.run_id) == [0, 1]


async def test_many_tries_at_once_store_each_chunk_once(stack: Stack, broker: str, other_broker: str) -> None:
    """Eight of the same append at two brokers: each is answered 200 or `fenced`, and the log has it once."""
    for _ in range(10):
        run = await writer_of(broker)
        tries = [run.at(at).append(*range(20), expected_index=0) for at in (broker, other_broker) * 4]
        replies = await asyncio.gather(*tries)
        assert {reply.status if reply.status == 200 else told(reply) for reply in replies} <= {200, (409, "fenced")}
        last = await run.append(*range(20), expected_index=0)
        assert (last.status, last.json["stored"], last.json["index"]) == (200, 20, 20)
        for refused in (reply.json for reply in replies if reply.status == 409):
            assert refused["stored"] <= refused["index"] <= 20
        await run.end()
        assert await numbers_of(stack, run.run_id) == [*range(20)]


async def test_two_writers_at_once_are_told(stack: Stack, broker: str, other_broker: str) -> None:
    """What each was told is stored is in the log, in its order; who lost cannot go on as if nothing had happened."""
    run = await writer_of(broker)

    async def write(base: str, begin: int) -> list[int]:
        mine: list[int] = []
        index = 0
        for number in range(begin, begin + 20):
            reply = await run.at(base).append(number, expected_index=index)
            if reply.status != 200:
                assert told(reply)[1] in {"fenced", "wrong_index"}
                break
            mine.append(number)
            index = reply.json["index"]
        return mine

    stored = await asyncio.gather(write(broker, 100), write(other_broker, 200))
    await run.end()
    assert await numbers_of(stack, run.run_id) == max(stored, key=len)
    assert min(stored, key=len) == []


async def test_an_upload_that_is_overtaken_is_told_how_far_it_came(
    stack: Stack, broker: str, other_broker: str
) -> None:
    """Its writer has gone to another broker: the first one answers `fenced`, and nothing more of it is stored."""
    run = await writer_of(broker)
    async with run.upload() as first:
        await first.say(0, 1, 2)
        await stored_up_to(stack, run.run_id, 3)
        async with run.at(other_broker).upload(expected_index=0) as second:
            await second.say(0, 1, 2, 3, 4)
            await stored_up_to(stack, run.run_id, 5)
            await first.say(3)
            refused = await first.reply()
            assert told(refused) == (409, "fenced")
            assert (refused.json["stored"], refused.json["index"]) == (3, 5)
            await second.say(5)
            done = await second.finish()
    assert (done.json["stored"], done.json["index"]) == (6, 6)
    await run.end()
    assert await numbers_of(stack, run.run_id) == [*range(6)]


async def test_a_silent_upload_that_is_overtaken_is_told_by_the_lease(stack: Stack, broker: str) -> None:
    """It need not say anything to hear that the run has another writer, who gives signs of life, too."""
    run = await writer_of(broker)
    async with run.upload() as upload:
        await upload.say(0)
        await stored_up_to(stack, run.run_id, 1)
        assert (await run.append(1, expected_index=1)).status == 200
        assert (await run.post("lease")).status == 200
        assert told(await upload.reply()) == (409, "fenced")
    await run.end()
    assert await numbers_of(stack, run.run_id) == [0, 1]


async def test_who_is_fenced_by_a_chunk_of_its_own_counts_it(
    stack: Stack, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its publish was stored, the answer was lost, and another was faster: the chunk is in the log, and is counted."""
    run = await writer_of(broker)
    record = await stack.record(run.run_id)
    address = LogAddress(record.id, record.shard)
    settled = Publisher._try

    async def lost(self: Publisher, writes: object) -> int:
        seq = await settled(self, writes)  # type: ignore[arg-type]
        if self.address == address and not overtaken:
            overtaken.append(seq)
            last = await stack.jetstream.last_message(address.stream, address.subject)
            async with Publisher.after(last, stack.jetstream, address, stack.settings) as faster:
                await faster.publish(b'{"content":"1 "}')
            return await settled(self, writes)  # type: ignore[arg-type]  # as a writer does that was not told
        return seq

    overtaken: list[int] = []
    monkeypatch.setattr(Publisher, "_try", lost)
    refused = await run.append(0, expected_index=0)
    monkeypatch.setattr(Publisher, "_try", settled)
    assert told(refused) == (409, "fenced")
    assert (refused.json["stored"], refused.json["index"]) == (1, 2)
    await run.end()
    assert await numbers_of(stack, run.run_id) == [0, 1]


async def stored_up_to(stack: Stack, run_id: str, count: int) -> None:
    """Wait until a run has so many chunks."""
    async with stack.resume(run_id) as stream:
        await stream.take(1 + count)
