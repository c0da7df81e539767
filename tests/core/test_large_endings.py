"""Endings too large for a message, and in odd words: the run ends all the same, and nobody beside it suffers."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from runstream.broker.ending import ENDING_BYTES, Outcome, ended, failed
from runstream.broker.errors import AgentFailed
from runstream.broker.service import Broker
from runstream.broker.topology import LogAddress
from runstream.schemas import ErrorMessage, StopReason, UsageStatistics, encode_run
from tests.support.core import Core, kinds, record_of, said
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
        assert broker.metrics.registry.get_sample_value("runstream_nats_reconnects_total") == 0
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
    ("stop_reason", "kept"),
    [
        ("", ""),
        (" ", ""),
        ("of a\nnewer kind", "of a newer kind"),
        ("two\r\nRs-Kind: end", "two Rs-Kind: end"),
        ("grün, 漢字, \N{GRINNING FACE}", "grün, 漢字, \N{GRINNING FACE}"),
        ("\x00", ""),
        ("\u2028", ""),
        ("\u3000a\x1cb\x85c\x7f", "a b c"),
        ("a: b", "a: b"),
        ("漢" * 256, "漢" * 85),
    ],
    ids=repr,
)
async def test_a_stop_reason_in_odd_words(core: Core, stop_reason: str, kept: str) -> None:
    """A stop reason nobody knows fails the run with an error that names it; record, log and header have the same."""
    async with Broker(core.settings, agent=scripted(said(0), StopReason(stop_reason=stop_reason))):
        run = await submit(core)
        record = await over(core, run)
        await queue_empty(core)
    stored = await core.stored(LogAddress(run.id, run.shard))
    assert kinds(stored) == ["ping", "attempt", "data", "plain", "error", "end"]
    assert msgspec.json.decode(stored[3].body)["stop_reason"] == kept
    assert [message.headers["Rs-Ending"] for message in stored[3:]] == [kept] * 3
    error = msgspec.json.decode(stored[4].body)
    assert f"'{stop_reason}'" in error["message"]
    assert (record.status, record.stop_reason, record.error) == ("failed", kept, error)


@pytest.mark.parametrize("letter", ["x", "\x01", '"', "é", "漢", "\N{GRINNING FACE}"], ids=repr)
@pytest.mark.parametrize("with_usage", [False, True])
def test_what_a_record_grows_by_is_bounded(letter: str, with_usage: bool) -> None:
    """Whatever letters an agent uses, the largest ending is within what a claim leaves free for it."""
    run, text = record_of(), letter * HUGE
    counts: dict[str, Any] = dict.fromkeys(
        ("completion_tokens", "prompt_tokens", "total_tokens", "step_count", "cached_input_tokens"), 2**63 - 1
    )
    outcome = (
        Outcome(text, usage=UsageStatistics(run_ids=[text] * 1000, **counts))
        if with_usage
        else failed(run.id, text, message=text, detail=text)
    )
    growth = len(encode_run(ended(run, outcome))) - len(encode_run(run))
    assert 8 * 1024 < growth < ENDING_BYTES - 1024


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
