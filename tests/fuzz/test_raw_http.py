"""HTTP that no client would send, and HTTP as no client would send it, over bare sockets, to either port."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from tests.fuzz.cases import bounded, fuzzed
from tests.fuzz.wire import LAST_REQUEST, PORTS, RUN, Answered, Asking, absurd, answers_in, said_to, split
from tests.support.http import Connection
from tests.support.ingest import Writer, writer_of
from tests.support.stack import Stack

EACH_PORT = pytest.mark.parametrize("port", PORTS)
SHARE = 0.4 / 2 / 4
"""Of four tests, on each of two ports."""


async def run_in(stack: Stack, pieces: Sequence[bytes], *, is_over: bool) -> tuple[list[bytes], Writer | None]:
    """Make the run that is named, if one is: over for a gateway's readers, going on for a broker's writers."""
    if RUN.encode() not in b"".join(pieces):
        return [*pieces], None
    writer = await writer_of(stack.broker_base)
    if is_over:
        await writer.end()
    raw, cuts = b"".join(pieces), [len(piece) for piece in pieces]
    raw = raw.replace(RUN.encode(), writer.run_id.encode())
    found = []
    for length in cuts:
        found.append(raw[:length])
        raw = raw[length:]
    return found, None if is_over else writer


async def answered(stack: Stack, port: str, pieces: Sequence[bytes]) -> tuple[list[Answered], bool]:
    """What is said to these pieces, and whether the connection was closed then; after that all is well."""
    base = stack.base if port == "gateway" else stack.broker_base
    async with bounded():
        sent, writer = await run_in(stack, pieces, is_over=port == "gateway")
        async with Connection.open(base) as connection:
            raw, is_closed = await said_to(connection, sent)
        if writer is not None:
            await writer.end()
        await serves(base)
    found = answers_in(raw)
    event(f"answered {[each.status for each in found][:2]}")
    assert found or is_closed, "neither an answer nor the end of the connection"
    assert [each for each in found if each.status >= 500 and each.status != 503] == []
    return found, is_closed


async def serves(base: str) -> None:
    """Check that a well-formed request on a new connection is answered."""
    async with Connection.open(base) as connection:
        await connection.send("GET", "/livez")
        assert (await connection.reply()).status == 200


@EACH_PORT
@fuzzed(SHARE)
@given(data=st.data())
async def test_split_at_any_bytes(stack: Stack, port: str, data: st.DataObject) -> None:
    """A request that comes in pieces is the request."""
    asking = data.draw(st.sampled_from(PORTS[port]))
    raw = asking.raw(
        version=data.draw(st.sampled_from(["1.1", "1.0"])), is_chunked=data.draw(st.booleans()), is_last=True
    )
    if b"HTTP/1.0" in raw and b"chunked" in raw:
        raw = raw.replace(b"HTTP/1.0", b"HTTP/1.1")
    found, is_closed = await answered(stack, port, data.draw(split(raw)))
    assert [each.status for each in found] == [asking.status]
    assert is_closed


@EACH_PORT
@fuzzed(SHARE)
@given(data=st.data())
async def test_truncated_at_any_byte(stack: Stack, port: str, data: st.DataObject) -> None:
    """Who hangs up in the middle of a request, or goes on with another one, harms nobody.

    Half a head is waited for, for longer than a case may take: there is no answer to expect here of a client that stays
    and says nothing more.
    """
    asking = data.draw(st.sampled_from(PORTS[port]))
    raw = asking.raw(is_chunked=data.draw(st.booleans()))
    half = raw[: data.draw(st.integers(0, len(raw) - 1))]
    if data.draw(st.booleans(), label="goes on"):
        await answered(stack, port, [half, LAST_REQUEST, b"\r\n" * 2])
        return
    base = stack.base if port == "gateway" else stack.broker_base
    async with bounded():
        (sent,), writer = await run_in(stack, [half], is_over=port == "gateway")
        async with Connection.open(base) as connection:
            await connection.send_raw(sent)
            if data.draw(st.booleans(), label="in good order"):
                connection.writer.write_eof()
            for _ in range(data.draw(st.integers(0, 5))):
                await asyncio.sleep(0)
        if writer is not None:
            await writer.end()
        await serves(base)


@EACH_PORT
@fuzzed(SHARE)
@given(data=st.data())
async def test_pipelined(stack: Stack, port: str, data: st.DataObject) -> None:
    """Requests that come at once are answered in their order, up to one that closes the connection, or is no HTTP."""
    asked: list[Asking | None] = data.draw(st.lists(st.sampled_from([*PORTS[port], None]), min_size=1, max_size=6))
    raw = b"".join(
        b"no HTTP\r\n\r\n" if each is None else each.raw(is_chunked=data.draw(st.booleans())) for each in asked
    )
    found, _ = await answered(stack, port, data.draw(split(raw + LAST_REQUEST)))
    statuses = [each.status for each in found]
    is_last = bool(found) and found[-1].headers.get("connection", "").lower() == "close"
    if None not in asked:
        expected = [*(each.status for each in asked if each is not None), 200]
        # What is refused before its body has come is the last answer of its connection, and says so.
        assert statuses == expected or (is_last and statuses == expected[: len(statuses)])
        return
    # What comes in one piece with what is no HTTP may be lost with it: aiohttp reads all of a piece before any of it.
    before = [each.status for each in asked[: asked.index(None)] if each is not None]
    assert statuses == [*before[: len(statuses) - 1], 400] or (is_last and statuses == before[: len(statuses)])


@EACH_PORT
@fuzzed(SHARE)
@given(data=st.data())
async def test_absurd(stack: Stack, port: str, data: st.DataObject) -> None:
    """Whatever comes is answered, or the connection is closed; what is no HTTP gets what every answer has."""
    raw = data.draw(absurd(port))
    found, _ = await answered(stack, port, [*data.draw(split(raw)), LAST_REQUEST, b"\r\n\r\n"])
    for each in found:
        assert each.headers["server"] == "runstream"
        assert each.headers["x-content-type-options"] == "nosniff"
