"""`runstream replay`: a run's events in the time that they took, at any speed."""

import itertools
import time
from contextlib import aclosing

import pytest

from runstream.gateway.commands.client import Client
from runstream.gateway.commands.exits import Usage
from runstream.gateway.commands.following import Follower
from runstream.gateway.commands.pace import Pace, speed_of
from tests.cli.test_tail import chunks_of, without_pings
from tests.support.commands import done
from tests.support.proxy import Proxy
from tests.support.stack import Stack
from tests.support.waiting import wait_until

MOMENTS = [
    {"seq_id": seq, "stored_at": f"2026-11-22T05:00:0{seconds}.{part}Z"}
    for seq, seconds, part in [(10, 0, "500000000"), (12, 1, "000000001"), (13, 0, "900000000"), (20, 9, "500000000")]
]


@pytest.mark.parametrize(("speed", "expected"), [("1x", [0, 0.5, 0.5, 9]), ("10x", [0, 0.05, 0.05, 0.9])])
def test_each_message_has_its_time_and_none_is_before_the_one_before(speed: str, expected: list[float]) -> None:
    """As long after the first as it was stored, by the speed; a clock that went back shows nothing out of order."""
    pace = Pace(speed_of(speed))
    pace.learn(MOMENTS)
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
    timeline = (await stack.fetch("GET", f"/v1/runs/{run_id}/timeline")).json
    pace = Pace(1.0)
    pace.learn(timeline)
    offsets = [pace.seconds(moment["seq_id"]) for moment in timeline]
    assert all(one <= other for one, other in itertools.pairwise(offsets))
    assert offsets[-1] > 0.6
    began = time.monotonic()
    shown = await done("replay", run_id, "--json", "--url", stack.base)
    took = time.monotonic() - began
    assert (shown.code, without_pings(shown.json)) == (0, chunks_of(events))
    assert took >= offsets[-1]


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


async def test_times_are_told_page_by_page(stack: Stack) -> None:
    """Every message of the log has its time, in order, however long the run is; 10x shows them all."""
    run_id, events = await stack.finished({"chunks": 600, "interval_ms": 0})
    moments: list[dict[str, object]] = []
    while True:
        after = moments[-1]["seq_id"] if moments else 0
        page = (await stack.fetch("GET", f"/v1/runs/{run_id}/timeline?starting_after={after}&limit=200")).json
        if not page:
            break
        moments += page
    record = await stack.record(run_id)
    assert moments[-1]["seq_id"] == await stack.tip(record)
    # The log has an attempt that no stream shows.
    shown = [moment for moment in moments if moment["kind"] != "attempt"]
    assert [moment["seq_id"] for moment in shown if moment["kind"] == "data"] == [
        event.seq_id for event in events if event.seq_id is not None and event.message_type != "ping"
    ]
    assert len(shown) == len(events)
    replayed = await done("replay", run_id, "--speed", "10x", "--json", "--url", stack.base)
    assert without_pings(replayed.json) == chunks_of(events)
