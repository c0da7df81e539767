"""What a run of the chaos comes to: which faults a seed gives, what is kept of it, and when it has failed."""

import asyncio
import random
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from tests.chaos import run
from tests.chaos.calm import Faults
from tests.chaos.faults import line_faults, node_faults
from tests.chaos.history import Fault
from tests.chaos.processes import Tasks
from tests.chaos.run import KEPT, REST_EVERY, Act, Score, drawn, parsed, pause_after, together
from tests.chaos.verdict import Bounds
from tests.chaos.world import KINDS, ROUTES

FAULTS = [fault for place in (*KINDS, ROUTES) for fault in line_faults(place)]
READ = Counter(readers_to_the_end=1)


def names(seed: int, count: int) -> list[list[str]]:
    """What is drawn first."""
    chance = random.Random(seed)
    bag = drawn(FAULTS, chance)
    return [[fault.name for fault in together(bag, chance)] for _ in range(count)]


def test_a_seed_repeats_its_faults() -> None:
    """And another gives others."""
    assert names(7, 50) == names(7, 50) != names(8, 50)


def test_every_fault_has_its_turn() -> None:
    """Before any comes again."""
    bag = drawn(FAULTS, random.Random(7))
    assert {fault.name for fault in islice(bag, len(FAULTS))} == {fault.name for fault in FAULTS}


def test_everybody_is_held_to_their_bounds_now_and_then() -> None:
    """A breath is as if the faults went on; in a rest there are as many seconds without any as an end may take."""
    chance, at = random.Random(7), 0.0
    faults: list[Fault] = []
    for times in range(1, 2 * REST_EVERY + 1):
        faults.append(Fault(at=at, ended=at + 3, name="kill gateway", target="gateway-0"))
        at += 3 + pause_after(times, chance)
    calm = Faults(faults)
    assert calm.calm_between(0, faults[REST_EVERY - 1].at) == 0
    assert calm.calm_between(0, at) > 2 * Bounds().end_told


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_what_is_done_at_once_is_done_at_different_places(share: float) -> None:
    """What is done to one place twice at a time could not be told apart."""
    chance = random.Random(7)
    bag = drawn(FAULTS, chance)
    places = [[fault.place for fault in together(bag, chance, share)] for _ in range(500)]
    assert max(map(len, places)) > 2
    assert all(len(set(drawn_now)) == len(drawn_now) for drawn_now in places)


def test_kills_are_as_many_as_told() -> None:
    """For once each other fault."""
    faults = [*line_faults(ROUTES), *node_faults("leader")]
    counts = Counter(fault.name for fault in islice(drawn(faults, random.Random(7), 30), len(faults) + 29))
    assert counts.pop("kill leader") == 30
    assert set(counts.values()) == {1}


def test_no_node_is_away_while_two_others_are_kept_apart() -> None:
    """Nobody would be a majority, and neither of the two could be seen to take effect."""
    places = {fault.place for fault in [*line_faults(ROUTES), *node_faults("leader"), *node_faults("follower")]}
    assert places == {"nats"}


async def test_an_act_that_breaks_off_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of others are not lost by it; of the first few it is kept what happened."""

    async def break_off(_: Act) -> None:
        raise OSError("no more files")

    monkeypatch.setattr(Act, "_live", break_off)
    score = Score()
    await run.play(parsed(["--seconds", f"{2 * KEPT * run.ACT_SECONDS}"]), tmp_path, score)
    assert score.acts == len(score.complaints) == 2 * KEPT
    assert score.complaints[0] == "OSError: no more files"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"act-{number}" for number in range(KEPT)]


async def test_of_an_act_in_which_all_was_well_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of hours has gigabytes of it."""

    async def go_well(_: Act) -> None:
        return

    monkeypatch.setattr(Act, "_live", go_well)
    score = Score()
    await run.play(parsed(["--seconds", "1"]), tmp_path, score)
    assert (score.acts, score.complaints, list(tmp_path.iterdir())) == (2, [], [])


@pytest.mark.parametrize(
    ("score", "is_good"),
    [
        (Score(injected=10, effective=9, figures=READ), True),
        (Score(injected=10, effective=8, figures=READ), False),
        (Score(figures=READ), False),
        (Score(injected=10, effective=10), False),
        (Score(injected=10, effective=10, figures=READ, violations=1), False),
        (Score(injected=10, effective=10, figures=READ, complaints=["broker-0 has ended"]), False),
    ],
)
def test_when_a_run_has_failed(score: Score, is_good: bool) -> None:
    """Any violation, anything that is not well after it, too few effective faults, none at all, or no readers."""
    assert score.is_good == is_good


def test_the_command_line() -> None:
    """Both topologies and all faults, unless told otherwise."""
    options = parsed(["--seed", "3", "--hours", "2"])
    assert (options.seed, options.hours, options.nodes, options.only) == (3, 2, [1, 3], [""])
    assert parsed(["--nodes", "3", "--only", "kill", "log full"]).only == ["kill", "log full"]
    with pytest.raises(SystemExit):
        parsed(["--together", "1"])


async def test_a_process_that_has_not_finished_says_so() -> None:
    """Else what it has not read would pass for read, or be held against the services."""
    tasks, stopping = Tasks(), asyncio.Event()
    stopping.set()
    with pytest.raises(SystemExit, match=r"^out of patience: 1 had not finished after 0 s: \['reading'\]$"):
        async with tasks.finished(0.01, stopping):
            tasks.start(asyncio.sleep(60), "reading")
    tasks = Tasks()
    async with tasks.finished(60, stopping):
        tasks.start(asyncio.sleep(0), "reading")
