"""A test that was too late while the machine stood still measures again, and no other does."""

import contextlib
import ctypes
import time
from collections.abc import Callable

import pytest

from tests.support.standstill import STANDSTILL_SECONDS, TRIES, Untimely, check_timely, measured_again

LONG_SECONDS = 2 * STANDSTILL_SECONDS


def stand_still() -> None:
    """Keep every thread of this process from running, as a machine does that gives it no processor."""
    ctypes.PyDLL(None).usleep(int(LONG_SECONDS * 1e6))


def take_long() -> None:
    """Keep the event loop, and no other thread."""
    time.sleep(LONG_SECONDS)


class Failing:
    """A test that fails a number of times, after something happened."""

    def __init__(self, times: int, meanwhile: Callable[[], None], error: type[AssertionError] = Untimely) -> None:
        self.begun = 0
        self._times = times
        self._meanwhile = meanwhile
        self._error = error

    async def __call__(self) -> None:
        self.begun += 1
        if self.begun <= self._times:
            self._meanwhile()
            raise self._error(self.begun)


async def test_what_failed_while_the_machine_stood_still_begins_again() -> None:
    """It passes if it passes then."""
    test = Failing(1, stand_still)
    await measured_again(test)()
    assert test.begun == 2


async def test_what_fails_each_time_fails() -> None:
    """A machine that stands still each time hides nothing."""
    test = Failing(TRIES, stand_still)
    with pytest.raises(Untimely, match=str(TRIES)):
        await measured_again(test)()
    assert test.begun == TRIES


async def test_what_is_wrong_fails_at_once() -> None:
    """Whatever the machine did: only when something came is a matter of the machine's."""
    test = Failing(1, stand_still, AssertionError)
    with pytest.raises(AssertionError, match="1"):
        await measured_again(test)()
    assert test.begun == 1


@measured_again
async def test_what_took_long_on_its_own_fails_at_once() -> None:
    """A turn of the event loop that is too long is the code's."""
    test = Failing(1, take_long)
    with contextlib.suppress(Untimely):
        await measured_again(test)()
    check_timely(test.begun == 1, test.begun)
