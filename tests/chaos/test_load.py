"""The load of a chaos run, on services that nothing is done to: all is well with them, or they are caught."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from runstream.broker.log import Entry
from runstream.gateway import framing, window
from runstream.gateway.sse import Style, event_of
from runstream.schemas import Kind
from tests.chaos.agent import speak
from tests.chaos.checker import Checker
from tests.chaos.history import Ended, GaveUp, Joined, Opening, records_of
from tests.chaos.verdict import Rule, Verdict
from tests.support.processes import python, running
from tests.support.stack import Stack, stack_running
from tests.support.waiting import wait_until

SECONDS = 45.0
"""What a process of the load may take to begin, or to finish: machines are slow."""
Making = Callable[[Entry, Style], bytes]


async def loaded(stack: Stack, directory: Path, runs: int) -> Verdict:
    """Let writers write so many runs, and readers read them; returns what the checker says."""
    common: list[str | Path] = ["--directory", directory, "--seed", "7", "--gateway", f"gateway-1={stack.base}"]
    writing = ["--broker", f"broker-1={stack.broker_base}", "--nats-url", stack.settings.nats_url]
    sizes = ["--runs", "4", "--longest", "60", "--slowest", "0.05", "--lasting", "1"]
    reading = ["--followers", "30", "--longest-stall", "0.2"]
    async with (
        running(*python("-m", "tests.chaos.writer", *common, "--name", "w1", *writing, *sizes)) as writer,
        running(*python("-m", "tests.chaos.reader", *common, "--name", "r1", *reading)) as reader,
    ):
        await writer.wait_for_line("ready", SECONDS)
        await reader.wait_for_line("ready", SECONDS)
        await wait_until(lambda: over(directory) >= runs, SECONDS, writer.report())
        for process in (writer, reader):
            process.send_signal(signal.SIGTERM)
            assert await process.wait(SECONDS) == 0, process.report()
        assert (writer.errors, reader.errors) == ([], [])
    return Checker().check(directory)


def over(directory: Path) -> int:
    """How many runs their writers have ended or given up."""
    return sum(isinstance(record, Ended | GaveUp) for record in records_of(directory, ["writer"]))


async def test_a_load_that_is_not_disturbed_is_right(nats_url: str, tmp_path: Path) -> None:
    """Every kind of writer and of reader takes part, all of it is checked, and nothing is wrong with it."""
    async with stack_running(nats_url, agent=speak, broker={"lease_seconds": 2}) as stack:
        verdict = await loaded(stack, tmp_path, 12)
    assert verdict.violations == []
    figures = verdict.figures
    assert figures.runs >= 12
    assert figures.deliveries > figures.chunks >= figures.acknowledged > 0
    assert 0 < figures.readers_to_the_end <= figures.readers <= figures.connections
    records = list(records_of(tmp_path, ["writer", "reader"]))
    assert {it.mode for it in records if isinstance(it, Opening)} == {"library", "ingest", "capture"}
    assert {it.kind for it in records if isinstance(it, Joined)} == {"letta", "event_source", "letta_client"}


def losing(entry: Entry, style: Style) -> bytes:
    """One chunk in three is not shown."""
    return b"" if entry.kind is Kind.DATA and entry.seq % 3 == 0 else event_of(entry, style)


def doubling(entry: Entry, style: Style) -> bytes:
    """One chunk in three is shown twice."""
    return event_of(entry, style) * (2 if entry.kind is Kind.DATA and entry.seq % 3 == 0 else 1)


def going_on(entry: Entry, style: Style) -> bytes:
    """The stop reason comes after the end."""
    return b"" if entry.kind is Kind.PLAIN else event_of(entry, style)


@pytest.mark.parametrize(
    ("making", "rule"), [(losing, Rule.LOST), (doubling, Rule.DUPLICATED), (going_on, Rule.BAD_END)]
)
async def test_a_gateway_that_is_wrong_is_caught(
    nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, making: Making, rule: Rule
) -> None:
    """What it does to its readers is what the checker says."""
    for module in (window, framing):
        monkeypatch.setattr(module, "event_of", making)
    async with stack_running(nats_url, agent=speak, broker={"lease_seconds": 2}) as stack:
        verdict = await loaded(stack, tmp_path, 4)
    assert verdict.count[rule] > 0, verdict
