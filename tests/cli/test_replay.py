"""`runstream replay`: a run's events in the time that they took, at any speed."""

import itertools
import shlex
import signal
import time
from contextlib import aclosing

import pytest

from runstream.broker.reader import LogReader, Mark
from runstream.broker.topology import LogAddress
from runstream.gateway.commands.client import Client
from runstream.gateway.commands.exits import Usage
from runstream.gateway.commands.following import Follower
from runstream.gateway.commands.pace import Pace, speed_of
from tests.cli.test_tail import chunks_of, without_pings
from tests.support.commands import CLEAN, done
from tests.support.processes import running, runstream
from tests.support.proxy import Proxy
from tests.support.services import SOURCE
from tests.support.stack import Stack
from tests.support.waiting import wait_until

NOON = 1_795_348_800_000


@pytest.mark.parametrize(("speed", "expected"), [("1x", [0, 0.5, 0.5, 9]), ("10x", [0, 0.05, 0.05, 0.9])])
def test_each_message_has_its_time_and_none_is_before_the_one_before(speed: str, expected: list[float]) -> None:
    """As long after the first as it was stored, by the speed; a clock that went back shows nothing out of order."""
    pace = Pace(speed_of(speed))
    pace.learn([10, 12, 13, 20], [NOON + 500, NOON + 1000, NOON + 900, NOON + 9500])
    assert [pace.seconds(seq) for seq in (10, 12, 13, 20)] == pytest.approx(expected)


def test_at_once_asks_for_no_times() -> None:
    """With max nothing is waited for."""
    pace = Pace(speed_of("max"))
    assert pace.knows(5)
    assert pace.seconds(5) == 0


@pytest.mark.parametrize("speed", ["fast", "0x", "-1x", "", "1xx", "infx"])
def test_what_is_no_speed_is_told(speed: str) -> None:
    """It is said how to write one."""
    with pytest.raises(Usage, match=r"Write a speed as 1x, 10x, 0\.5x or max"):
        speed_of(speed)


async def test_a_replay_is_the_run_in_no_less_than_its_time(stack: Stack) -> None:
    """The lines are those of the run; from the first to the last it takes as long as they did, or longer."""
    run_id, events = await stack.finished({"chunks": 6, "interval_ms": 150})
    outline = (await stack.fetch("GET", f"/v1/runstream/runs/{run_id}/outline")).json
    pace = Pace(1.0)
    pace.learn(outline["seq_ids"], outline["stored_at_ms"])
    offsets = [pace.seconds(seq) for seq in outline["seq_ids"]]
    assert all(one <= other for one, other in itertools.pairwise(offsets))
    assert offsets[-1] > 0.6
    began = time.monotonic()
    shown = await done("replay", run_id, "--json", "--url", stack.base)
    took = time.monotonic() - began
    assert (shown.code, without_pings(shown.json)) == (0, chunks_of(events))
    assert took >= offsets[-1]


async def test_interrupted_it_says_how_to_see_the_rest(stack: Stack) -> None:
    """Ctrl-C ends the line that it came in, and names the cursor of what was shown last, and not of what came last."""
    run_id, events = await stack.finished({"chunks": 60, "interval_ms": 50, "reasoning": True})
    replay = shlex.join(runstream("replay", run_id, "--speed", "0.5x", "--url", stack.base))
    async with running("bash", "-c", f"exec {replay} 2>&1", env={**SOURCE, **CLEAN}) as process:
        await wait_until(lambda: len(process.lines) > 0, 20)
        process.send_signal(signal.SIGINT)
        assert await process.wait(20) == 130
    assert process.lines[-1].startswith("runstream: The run is left alone. To come back: runstream tail ")
    rest = await done(*shlex.split(process.lines[-1].partition("back: runstream ")[2]), "--json")
    assert 0 < len(rest.json) < len(chunks_of(events))


async def pause(seconds: float) -> None:
    until = time.monotonic() + seconds
    await wait_until(lambda: time.monotonic() > until)


async def test_who_takes_long_over_an_event_is_not_given_up(stack: Stack) -> None:
    """Patience is for a server that is away: a pause in a replay, in which the connection broke, is none of it."""
    run_id, events = await stack.finished({"chunks": 400, "interval_ms": 0})
    seen = []
    async with Proxy.running([stack.base], cuts=[5000]) as proxy, Client(proxy.url) as client:
        follower = Follower(client, run_id, patience_seconds=0.3)
        async with aclosing(follower.events()) as following:
            async for event in following:
                seen.append(event.data)
                if len(seen) == 2:
                    await pause(0.6)
        assert len(proxy.passages) > 1
    assert [data for data in seen if "ping" not in data] == [event.data for event in events if "ping" not in event.data]


async def test_at_once_it_is_the_run(stack: Stack) -> None:
    """With max it does not wait, and says the same; what failed is 1."""
    run_id, events = await stack.finished({"chunks": 300, "interval_ms": 0, "error_after": 290})
    shown = await done("replay", run_id, "--speed", "max", "--json", "--url", stack.base)
    assert (shown.code, without_pings(shown.json)) == (1, chunks_of(events))


async def test_times_are_asked_for_page_by_page(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every message has its time, however long the run is."""
    run_id, events = await stack.finished({"chunks": 600, "interval_ms": 0})
    asked: list[int] = []
    outline = LogReader.outline

    async def short(self: LogReader, address: LogAddress, after: int, *, limit: int) -> list[Mark]:
        asked.append(after)
        return await outline(self, address, after, limit=min(limit, 200))

    monkeypatch.setattr(LogReader, "outline", short)
    replayed = await done("replay", run_id, "--speed", "10x", "--json", "--url", stack.base)
    assert without_pings(replayed.json) == chunks_of(events)
    assert len(asked) > 3
    assert asked == sorted({*asked})
