"""Quantiles of any number of durations, in memory that does not grow with it."""

import random

import pytest

from runstream.gateway.commands.spread import Spread


def test_quantiles_are_true_to_a_thousandth() -> None:
    """Of milliseconds and of minutes; the longest is as it was."""
    chance = random.Random(1)
    durations = [chance.lognormvariate(-6, 3) for _ in range(20_000)]
    spread = Spread()
    for each in durations:
        spread.note(each)
    ordered = sorted(durations)
    for share in (0.01, 0.5, 0.99, 0.999):
        exact = ordered[int(share * len(ordered)) - 1]
        assert exact <= spread.quantile(share) == pytest.approx(exact, rel=1e-3, abs=1e-6)
    assert (spread.count, spread.longest) == (len(durations), ordered[-1])
    assert spread.quantile(1.0) == ordered[-1]


def test_many_durations_take_no_more_memory_than_few() -> None:
    """An hour of deliveries is millions of them."""
    chance, spread = random.Random(2), Spread()
    for _ in range(200_000):
        spread.note(chance.uniform(0.001, 0.01))
    kept = len(spread._counts)
    for _ in range(200_000):
        spread.note(chance.uniform(0.001, 0.01))
    assert len(spread._counts) < 1.05 * kept
    assert kept < 6000


def test_of_nothing_nothing_is_known() -> None:
    """It is no error: a run may have been over at once."""
    assert Spread().quantile(0.5) == 0
