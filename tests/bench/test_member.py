"""One reader of the crowd, and the group that it waits with, on bytes that nobody sent."""

import time

import pytest

from tests.bench.counting import Lost
from tests.bench.exchange import Refused
from tests.bench.member import Group, Member
from tests.bench.peers.servers.floor import HEAD, frame


def feed(member: Member, data: bytes) -> None:
    """Hand it bytes as a transport does."""
    member.get_buffer(-1)[: len(data)] = data
    member.buffer_updated(len(data))


def follower(**given: int) -> tuple[Group, Member]:
    group = Group()
    member = Member(group, **given)
    group.members.append(member)
    return group, member


@pytest.mark.parametrize("size", [1, 7, 333, 10_000])
async def test_chunks_are_counted_however_the_bytes_come(size: int) -> None:
    """One at a time or all at once, headers included."""
    group, member = follower()
    group.restart(timing=True)
    data = HEAD + b"".join(map(frame, range(20)))
    for at in range(0, len(data), size):
        feed(member, data[at : at + size])
    await group.reach(20, seconds=1)
    assert (group.chunks, group.bytes, len(group.delays)) == (20, len(data), 20)
    assert 0 <= min(group.delays) <= max(group.delays) < time.monotonic_ns()
    assert member.cursor > 0


async def test_who_loses_a_chunk_fails_the_group() -> None:
    """Whoever waits hears of it at once, and not when the time is up."""
    group, member = follower()
    feed(member, HEAD + frame(0) + frame(2))
    with pytest.raises(Lost, match="0 to 2"):
        await group.reach(3, seconds=60)


async def test_a_refusal_fails_the_group() -> None:
    """With what was said."""
    group, member = follower()
    feed(member, b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(Refused, match="503"):
        await group.reach(1, seconds=60)


async def test_who_is_turned_away_comes_back_when_it_was_told_to() -> None:
    """As a client does; it has not failed."""
    told: list[tuple[Member, float]] = []
    group = Group(lambda member, seconds: told.append((member, seconds)))
    member = Member(group)
    group.members.append(member)
    feed(member, b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 2\r\n\r\n{}")
    assert (told, group.turned_away, group.failure) == ([(member, 2.0)], 1, None)
    feed(member, HEAD + frame(0))
    await group.reach(1, seconds=1)


async def test_who_is_late_is_told() -> None:
    """A bound that passes says how many are missing."""
    group, _ = follower()
    with pytest.raises(Refused, match="1 of 1 are not there"):
        await group.reach(1, seconds=0.01)


async def test_who_comes_back_goes_on_where_it_was() -> None:
    """And is live again with the first chunk that was made after that."""
    group, member = follower()
    group.restart(timing=True)
    feed(member, HEAD + frame(0) + frame(1))
    missed = frame(2)
    member.come_back(b"")
    live = []
    for data in (HEAD + missed, frame(3)):
        feed(member, data)
        live.append(member.caught_up_ns > 0)
    assert live == [False, True]
    assert group.failure is None


def test_a_slow_reader_is_given_no_more_room_than_it_may_read() -> None:
    """What it does not take stays with the server."""
    _, member = follower(per_second=100)
    assert len(member.get_buffer(-1)) == 100
    feed(member, b"x" * 60)
    assert len(member.get_buffer(-1)) == 40
    member.refill()
    assert len(member.get_buffer(-1)) == 100
