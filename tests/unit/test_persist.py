"""Changes of the index are tried again: long while others are faster, as long as was said while NATS is away."""

import asyncio
import time

import pytest

from runstream.broker import bucket
from runstream.broker.bucket import persist
from runstream.broker.errors import Contended, Unavailable, WrongLastSequence

PATIENCE_SECONDS = 0.05


@pytest.mark.parametrize("overtaken", [WrongLastSequence, Contended])
async def test_who_is_overtaken_is_not_told_that_nats_is_away(overtaken: type[Exception]) -> None:
    """Competing for longer than an outage is waited for, it gets through all the same."""
    through_at = time.monotonic() + 4 * PATIENCE_SECONDS

    async def attempt() -> str:
        if time.monotonic() < through_at:
            raise overtaken
        return "through"

    assert await persist(attempt, PATIENCE_SECONDS) == "through"


async def test_who_is_overtaken_once_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that attempt took: who was faster is found by the next one."""
    monkeypatch.setattr(bucket, "CONTEST_SECONDS", 0.1)
    attempts = 0

    async def attempt() -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await asyncio.sleep(0.2)  # how long a machine stalls, and not a wait
            raise WrongLastSequence
        return "found"

    assert await persist(attempt, PATIENCE_SECONDS) == "found"


async def test_an_outage_is_waited_for_from_when_it_begins() -> None:
    """Not from the first attempt: until it was overtaken last, NATS was there."""
    away_at = time.monotonic() + 4 * PATIENCE_SECONDS

    async def attempt() -> None:
        raise WrongLastSequence if time.monotonic() < away_at else Unavailable

    with pytest.raises(Unavailable):
        await persist(attempt, PATIENCE_SECONDS)
    assert away_at <= time.monotonic() < away_at + 1


async def test_who_is_overtaken_for_ever_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is an end to it."""
    monkeypatch.setattr(bucket, "CONTEST_SECONDS", 0.2)

    async def attempt() -> None:
        raise WrongLastSequence

    with pytest.raises(Unavailable, match="Overtaken"):
        await persist(attempt, PATIENCE_SECONDS)
