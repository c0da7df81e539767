"""What is believed of something that is not there: how leaders are asked, and for how long their word is good."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from runstream.broker import leaders as module
from runstream.broker.errors import CursorExpired, NotStored, Unavailable
from runstream.broker.jetstream import JetStream
from runstream.broker.leaders import Leaders

ALONE: Mapping[str, Any] = {}
HEARD: Mapping[str, Any] = {"cluster": {"replicas": [{"active": 1}, {"active": 1}]}}
UNHEARD: Mapping[str, Any] = {"cluster": {"replicas": [{"active": 9 * 10**9}, {"active": 9 * 10**9}]}}


class Scripted:
    """A connection whose server says that of its streams, after so many seconds, and counts how often."""

    def __init__(self, info: Mapping[str, Any] = HEARD, seconds: float = 0.0) -> None:
        self.info = info
        self.seconds = seconds
        self.asked: list[str] = []

    async def api(self, call: str, body: object) -> Mapping[str, Any]:
        assert body is None
        self.asked.append(call)
        await asyncio.sleep(self.seconds)
        return self.info


def leaders_of(*connections: Scripted, streams: tuple[str, ...] = ("RUNS_0",)) -> Leaders:
    return Leaders(streams, *(cast("JetStream", each) for each in connections))


class Looks:
    """What is found, look by look: an error, or what is there."""

    def __init__(self, *found: Exception | str, before: Callable[[], None] = lambda: None) -> None:
        self._found = iter(found)
        self._before = before
        self.count = 0

    async def __call__(self) -> str:
        self.count += 1
        if self.count == 2:
            self._before()
        found = next(self._found)
        if isinstance(found, Exception):
            raise found
        return found


async def test_what_is_there_is_believed_at_once() -> None:
    """Nobody is asked who leads."""
    connection = Scripted()
    assert await leaders_of(connection).sure(Looks("it"), NotStored) == "it"
    assert connection.asked == []


async def test_what_is_not_there_is_looked_for_again() -> None:
    """A gap may have closed in between: what the second look finds counts."""
    connection, looks = Scripted(), Looks(NotStored(), "it")
    assert await leaders_of(connection).sure(looks, NotStored) == "it"
    assert (looks.count, connection.asked) == (2, ["STREAM.INFO.RUNS_0"])


async def test_an_absence_that_was_confirmed_says_so() -> None:
    """Whoever hands it on need not ask anew."""
    with pytest.raises(CursorExpired) as gone:
        await leaders_of(Scripted()).sure(Looks(CursorExpired(), CursorExpired()), CursorExpired)
    assert gone.value.is_sure
    assert not CursorExpired().is_sure


async def test_every_connection_is_asked() -> None:
    """One of them may lead to a server that is cut off."""
    with pytest.raises(Unavailable):
        await leaders_of(Scripted(HEARD), Scripted(UNHEARD)).sure(Looks(NotStored(), NotStored()), NotStored)


async def test_one_that_does_not_answer_leaves_no_other_question() -> None:
    """Nobody would hear its answer."""
    slow, refusing = Scripted(seconds=0.05), Scripted()

    async def refuse(*_: object) -> Mapping[str, Any]:
        raise Unavailable("away")

    refusing.api = refuse  # type: ignore[assignment,method-assign]
    before = asyncio.all_tasks()
    with pytest.raises(Unavailable, match="away"):
        await leaders_of(refusing, slow).confirm()
    assert asyncio.all_tasks() == before


async def test_many_who_ask_at_one_time_share_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that takes longer than it is good for: a hundred after each other would wait for a minute."""
    monkeypatch.setattr(module, "GOOD_FOR_SECONDS", 0.05)
    connection = Scripted(seconds=0.1)
    leaders = leaders_of(connection)
    async with asyncio.timeout(2):
        await asyncio.gather(*(leaders.confirm() for _ in range(100)))
    assert len(connection.asked) == 1


async def test_many_streams_are_asked_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty that each take a tenth of the time there is are confirmed within it."""
    monkeypatch.setattr(module, "ASKING_SECONDS", 1.0)
    connection = Scripted(seconds=0.1)
    await leaders_of(connection, streams=tuple(f"RUNS_{number}" for number in range(30))).confirm()
    assert len(connection.asked) == 30


@pytest.mark.parametrize(("info", "is_believed"), [(ALONE, True), (HEARD, False)])
async def test_a_word_that_comes_late(
    monkeypatch: pytest.MonkeyPatch, info: Mapping[str, Any], is_believed: bool
) -> None:  # a parameter of the test
    """It is as good of a stream that nobody else can lead: a busy machine refuses nobody. Else it is old."""
    monkeypatch.setattr(module, "ASKING_SECONDS", 0.01)
    leaders = leaders_of(Scripted(info, seconds=0.05))
    with contextlib.nullcontext() if is_believed else pytest.raises(Unavailable, match="in time"):
        await leaders.confirm()


@pytest.mark.parametrize(("info", "is_believed"), [(ALONE, True), (HEARD, False)])
async def test_a_look_that_takes_too_long_proves_nothing(
    monkeypatch: pytest.MonkeyPatch, info: Mapping[str, Any], is_believed: bool
) -> None:  # a parameter of the test
    """Another may lead by its end; a stream with one copy has nobody to lose."""
    clock = 1000.0
    monkeypatch.setattr("runstream.broker.leaders.time.monotonic", lambda: clock)

    def pass_time() -> None:
        nonlocal clock
        clock += 1.0

    looks = Looks(NotStored(), NotStored(), before=pass_time)
    with pytest.raises(NotStored if is_believed else Unavailable):
        await leaders_of(Scripted(info)).sure(looks, NotStored)
