"""Work that many ask for at one time: all of it is done, in order, and others have their turn."""

import asyncio
import time

import pytest

from runstream.broker.tasks import TURN_SECONDS, Slices, cancel_all


async def test_all_is_done_in_order_and_others_have_their_turn() -> None:
    """Of three hundred things that take half a millisecond each, no more than fit into a turn are done in one."""
    slices = Slices()
    rounds = 0
    done: list[tuple[int, int]] = []

    async def count() -> None:
        nonlocal rounds
        while True:
            await asyncio.sleep(0)
            rounds += 1

    def work(number: int) -> None:
        done.append((number, rounds))
        until = time.monotonic() + TURN_SECONDS / 10
        while time.monotonic() < until:
            pass

    counting = asyncio.create_task(count())
    await asyncio.gather(*(slices.do(lambda number=number: work(number)) for number in range(300)))  # type: ignore[misc]  # a default binds
    await cancel_all(counting)
    assert [number for number, _ in done] == list(range(300))
    in_one = [sum(at == each for _, at in done) for each in {at for _, at in done}]
    assert max(in_one) <= 10
    assert max(in_one) > 1


async def test_what_fails_is_whose_work_it_was() -> None:
    """Whoever asked for it hears of it; what comes behind it is done all the same, and what nobody waits for is not."""
    slices = Slices()
    done: list[str] = []

    def stumble() -> None:
        raise ZeroDivisionError

    first = asyncio.create_task(slices.do(lambda: done.append("first")))
    failing = asyncio.create_task(slices.do(stumble))
    left = asyncio.create_task(slices.do(lambda: done.append("left")))
    last = asyncio.create_task(slices.do(lambda: done.append("last")))
    asyncio.get_running_loop().call_soon(left.cancel)
    await asyncio.wait([first, failing, left, last])
    assert done == ["first", "last"]
    assert left.cancelled()
    with pytest.raises(ZeroDivisionError):
        await failing
    await slices.do(lambda: done.append("again"))
    assert done[-1] == "again"
