"""What a run of the chaos comes to: which faults a seed gives, and when it has failed."""

import random
from collections import Counter
from itertools import islice

import pytest

from tests.chaos.calm import Faults
from tests.chaos.checker import Bounds
from tests.chaos.faults import link_faults
from tests.chaos.history import Fault
from tests.chaos.run import REST_EVERY, Score, drawn, parsed, pause_after, together
from tests.chaos.world import KINDS

FAULTS = [fault for place in KINDS for fault in link_faults(place)]
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


def test_two_at_once_are_at_two_places() -> None:
    """What is done to one place twice at a time could not be told apart."""
    chance = random.Random(7)
    bag = drawn(FAULTS, chance)
    pairs = [drawn_now for _ in range(500) if len(drawn_now := together(bag, chance)) == 2]
    assert pairs
    assert all(one.place != other.place for one, other in pairs)


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
