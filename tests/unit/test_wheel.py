"""The wheel: every item's moment comes once, never early and soon after it is due, one timer for all."""

import asyncio
import random
import time

import pytest

from runstream.gateway.follower import Wake
from runstream.gateway.wheel import Wheel
from tests.support.waiting import wait_until

TICK = 0.01


async def test_moments_come_once_and_not_early() -> None:
    """Of many items, put on in any order, each comes when it is due; one put on twice counts from the second time."""
    came: dict[int, float] = {}

    def due(item: int) -> None:
        assert item not in came
        came[item] = time.monotonic()

    wheel: Wheel[int] = Wheel(TICK, due)
    asked = {}
    for item in range(500):
        for _ in range(random.choice([1, 2])):
            seconds = random.random() / 5
            wheel.put(item, seconds)
            asked[item] = time.monotonic() + seconds
    await wait_until(lambda: len(came) == len(asked))
    assert all(came[item] >= asked[item] - 0.001 for item in asked)


async def test_what_is_taken_off_does_not_come() -> None:
    """Neither before its turn nor within it, and the others do."""
    came = []

    def due(item: int) -> None:
        came.append(item)
        wheel.remove(item ^ 1)

    wheel: Wheel[int] = Wheel(TICK, due)
    for item in range(20):
        wheel.put(item, 0.02)
    wheel.remove(0)
    wheel.remove(0)
    await wait_until(lambda: len(came) == 10)
    wheel.put(100, 0.02)
    await wait_until(lambda: 100 in came)
    assert came == [1, *range(2, 20, 2), 100]


async def test_an_item_may_be_put_on_again_from_its_moment() -> None:
    """So does whoever is looked at again and again."""
    came = []

    def due(item: int) -> None:
        came.append(item)
        wheel.put(item, 0.0)

    wheel: Wheel[int] = Wheel(TICK, due)
    wheel.put(1, 0.0)
    await wait_until(lambda: len(came) > 5)
    wheel.remove(1)
    assert wheel._timer is None


async def test_a_defect_in_one_moment_is_its_own() -> None:
    """The others of its turn come, and those of later ones."""
    came = []

    def due(item: int) -> None:
        if not item:
            raise ZeroDivisionError
        came.append(item)

    wheel: Wheel[int] = Wheel(TICK, due)
    for item in range(3):
        wheel.put(item, 0.0)
    wheel.put(3, 0.05)
    await wait_until(lambda: came == [1, 2, 3])


async def test_an_earlier_moment_does_not_wait_for_a_later_one() -> None:
    """Put on behind one that is far away, it comes in time."""
    came: list[int] = []
    wheel: Wheel[int] = Wheel(TICK, came.append)
    wheel.put(1, 3600.0)
    wheel.put(2, 0.0)
    await wait_until(lambda: came == [2])
    wheel.remove(1)


async def test_who_waits_is_woken() -> None:
    """Before or after he waits; cleared, he waits anew; and one who is cancelled leaves nothing that fails."""
    wake = Wake()
    wake.set()
    await wake.wait()
    wake.clear()
    waiting = asyncio.create_task(wake.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    wake.set()
    wake.set()
    await waiting
    wake.clear()
    waiting = asyncio.create_task(wake.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    wake.set()
    await wake.wait()
