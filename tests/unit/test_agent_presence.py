"""What a gateway remembers of the brokers it has asked, on a clock and with answers that the test owns."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from runstream.broker.errors import Unavailable
from runstream.broker.presence import Presence
from runstream.gateway import presence
from runstream.gateway.presence import NOBODY_SECONDS, AgentPresence
from tests.support.faults import turns

GRACE_SECONDS = 15.0
SILENT = Unavailable("a broker is there and does not answer")


class Brokers:
    """What answers a gateway: `there` or nobody, after `go`, on a clock that moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there: Presence | Exception | None = None
        self.asked = 0
        self.go = asyncio.Event()
        self.go.set()
        self.now = time.monotonic()
        monkeypatch.setattr(presence, "anybody_there", self._anybody_there)
        monkeypatch.setattr(presence, "time", SimpleNamespace(monotonic=lambda: self.now))
        nothing: Any = None
        self.gateway = AgentPresence(nothing, grace_seconds=GRACE_SECONDS)

    async def _anybody_there(self, _: object, *, seconds: float) -> Presence | None:
        assert seconds > 0
        self.asked += 1
        answer = self.there
        await self.go.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def brokers(monkeypatch: pytest.MonkeyPatch) -> Brokers:
    return Brokers(monkeypatch)


async def test_a_burst_asks_once(brokers: Brokers) -> None:
    """However many want to know at one time, and for a second after it."""
    brokers.there = Presence(forwards_credentials=True)
    assert await asyncio.gather(*(brokers.gateway.find() for _ in range(500))) == [brokers.there] * 500
    brokers.now += 0.9
    assert await brokers.gateway.find() == brokers.there
    assert brokers.asked == 1
    brokers.now += 0.2
    assert await brokers.gateway.find() == brokers.there
    assert brokers.asked == 2


async def test_that_nobody_is_there_is_remembered_for_a_moment(brokers: Brokers) -> None:
    """Creates that come one after another do not all ask, and a broker that starts is found soon."""
    for _ in range(100):
        assert await brokers.gateway.find() is None
    assert brokers.asked == 1
    brokers.there = Presence()
    brokers.now += NOBODY_SECONDS
    assert await brokers.gateway.find() == Presence()


async def test_who_was_there_counts_for_the_grace(brokers: Brokers) -> None:
    """A broker that is replaced is waited for, and no longer than was set since it last answered."""
    brokers.there = Presence()
    await brokers.gateway.find()
    for answer in (None, SILENT):
        brokers.there = answer
        brokers.now += GRACE_SECONDS / 2 - 0.1
        assert await brokers.gateway.find() == Presence()
    brokers.there = None
    brokers.now += 1
    assert await brokers.gateway.find() is None


@pytest.mark.parametrize("answer", [None, SILENT])
async def test_who_has_heard_of_nobody_waits_for_nobody(brokers: Brokers, answer: Exception | None) -> None:
    """A gateway that has just started says at once that there is no agent, or that it cannot know."""
    brokers.there = answer
    if answer is None:
        assert await brokers.gateway.find() is None
    else:
        with pytest.raises(Unavailable):
            await brokers.gateway.find()


async def test_an_answer_that_took_long_is_judged_when_it_comes(brokers: Brokers) -> None:
    """What counts is how long nobody has answered by then, not when it was asked."""
    brokers.there = Presence()
    await brokers.gateway.find()
    brokers.there = None
    brokers.now += GRACE_SECONDS - 1
    brokers.go.clear()
    asking = asyncio.create_task(brokers.gateway.find())
    await turns()
    brokers.now += 2
    brokers.go.set()
    assert await asking is None


async def test_who_leaves_takes_the_answer_from_nobody(brokers: Brokers) -> None:
    """The client whose request asked may hang up: the others get their answer all the same."""
    brokers.there = Presence()
    brokers.go.clear()
    first, second = (asyncio.create_task(brokers.gateway.find()) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    brokers.go.set()
    assert await second == Presence()
    assert first.cancelled()
    assert brokers.asked == 1
