"""Endings too large for a message, and in odd words: the run ends all the same, and nobody beside it suffers."""

from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from runstream.broker.errors import AgentFailed
from runstream.broker.service import Broker
from runstream.broker.topology import LogAddress
from runstream.schemas import ErrorMessage, StopReason, UsageStatistics
from tests.support.core import Core, kinds, said
from tests.support.runs import Line, answer, empty_queue, over, queue_empty, scripted, submit

HUGE = 3 * 2**20
"""Characters: more than a message takes three times over."""
NEARLY = 600_000
"""Characters that fit into a message once, and not twice: as a body, and again as a header."""
GOOD = StopReason(stop_reason="end_turn")


@pytest_asyncio.fixture(autouse=True)
async def _queue(core: Core) -> AsyncIterator[None]:
    """Each test begins with an empty queue."""
    await empty_queue(core)
    yield


@pytest.mark.parametrize("size", [NEARLY, HUGE])
@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("message", "failed"),
        ("detail", "failed"),
        ("error_type", "failed"),
        ("an error's message", "failed"),
        ("an error's detail", "failed"),
        ("stop_reason", "failed"),
        ("usage", "completed"),
    ],
)
async def test_an_ending_that_is_too_large(core: Core, kind: str, status: str, size: int) -> None:
    """Whatever an agent puts into its ending, the run has one, and a run beside it is not disturbed."""
    text = "x" * size
    last: dict[str, list[Line]] = {
        "message": [AgentFailed("llm_error", message=text)],
        "detail": [AgentFailed("llm_error", detail=text)],
        "error_type": [AgentFailed(text)],
        "an error's message": [ErrorMessage(error_type="quota", message=text)],
        "an error's detail": [ErrorMessage(error_type="quota", message="no", detail=text)],
        "stop_reason": [StopReason(stop_reason=text)],
        "usage": [GOOD, UsageStatistics(run_ids=[text])],
    }
    broker = Broker(core.settings, agent=scripted(said(0), *last[kind]))
    async with broker:
        run = await submit(core)
        record = await over(core, run)
        await queue_empty(core)
        assert broker.metrics.registry.get_sample_value("runstream_nats_reconnects") == 0
    stored = await core.stored(LogAddress(run.id, run.shard))
    assert kinds(stored)[:3] == ["ping", "attempt", "data"]
    assert kinds(stored)[-1] == "end"
    assert kinds(stored).count("end") == 1
    told = stored[-2].body
    assert b"x" * 256 in told
    assert len(told) < 2**16
    assert record.status == status
    assert record.error == (None if kind == "usage" else msgspec.json.decode(told))


@pytest.mark.parametrize(
    "stop_reason",
    ["", " ", "of a\nnewer kind", "two\r\nRs-Kind: end", "grün, 漢字, \N{GRINNING FACE}", "\x00", "\u2028", "a: b"],
    ids=repr,
)
async def test_a_stop_reason_in_odd_words(core: Core, stop_reason: str) -> None:
    """A stop reason nobody knows is told to the client as it is, and fails the run with an error that names it."""
    async with Broker(core.settings, agent=scripted(said(0), StopReason(stop_reason=stop_reason))):
        run = await submit(core)
        record = await over(core, run)
        await queue_empty(core)
    stored = await core.stored(LogAddress(run.id, run.shard))
    assert kinds(stored) == ["ping", "attempt", "data", "plain", "error", "end"]
    assert msgspec.json.decode(stored[3].body)["stop_reason"] == stop_reason
    error = msgspec.json.decode(stored[4].body)
    assert f"'{stop_reason}'" in error["message"]
    assert (record.status, record.stop_reason, record.error) == ("failed", stop_reason, error)


async def test_a_long_answer_of_large_chunks(core: Core) -> None:
    """A run of many chunks near the limit, more than a writer's queue holds, is stored whole."""
    chunks = [said(0) for _ in range(3)]
    for chunk in chunks:
        chunk.content = "x" * (2**20 - 2000)
    async with Broker(core.settings, agent=scripted(*chunks * 10, *answer(1))):
        run = await submit(core)
        record = await over(core, run)
    assert record.status == "completed"
    assert kinds(await core.stored(LogAddress(run.id, run.shard))).count("data") == 31
