"""What is to be seen of runs from outside: how far their logs have come, whose lease is on them, who follows them here.

A log and a lease are the same at every gateway. Followers are known to the gateway that serves them and to no other, so
what is said of them stands apart, with the name of the gateway that says it.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from runstream.broker.errors import BrokenLog, CursorExpired
from runstream.broker.keys import KV_OPERATION, LEASE_SECONDS, lease_key, subject_of
from runstream.broker.log import place_of
from runstream.broker.tasks import cancel_all
from runstream.broker.topology import INDEX_STREAM, LogAddress
from runstream.gateway.sse import Style
from runstream.schemas import timestamp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runstream.broker.jetstream import JetStream
    from runstream.broker.reader import Mark
    from runstream.gateway.fanout import Hub, RunTail
    from runstream.gateway.follower import Follower
    from runstream.schemas import RunRecord

__all__ = ["Figures", "Outline", "RunFigures", "RunFollowers"]

AT_ONE_TIME: Final = 16
"""Logs that are looked at together, whoever asks: figures cost NATS a request or two, an outline some reads."""

FRAMINGS: Final[dict[Style, Literal["letta", "letta_foreground", "event_source"]]] = {
    Style.BACKGROUND: "letta",
    Style.FOREGROUND: "letta_foreground",
    Style.EVENT_SOURCE: "event_source",
}


class Here(msgspec.Struct, kw_only=True):
    """What one gateway knows of those who follow a run there, and no other gateway does."""

    gateway: str
    """Its name, made up anew whenever it starts."""
    followers: int
    behind: int
    """Those of them that do not have all there is, and go on at their own pace."""
    lag_messages: int
    """How many messages the slowest lacks."""


class LeaseFigures(msgspec.Struct, kw_only=True):
    """A writer's proof of life."""

    renewed_at: str
    """When it was renewed last, by the clock of NATS."""
    seconds: float
    """How long it stands from then on."""


class RunFigures(msgspec.Struct, kw_only=True):
    """How far a run's log has come."""

    run_id: str
    messages: int
    """Messages of its log, the first ping, marks and the end included."""
    last_seq_id: int | None
    last_stored_at: str | None
    """When NATS stored the last of them; null: there is none, or none any more."""
    lease: LeaseFigures | None
    """Null: nobody writes to it."""
    here: Here


class FollowerFigures(msgspec.Struct, kw_only=True):
    """One open stream."""

    framing: Literal["letta", "letta_foreground", "event_source"]
    since: str
    began_after: int
    """The cursor that it was resumed after; 0: it began at the beginning."""
    cursor: int
    """The sequence of the last message that was written to it."""
    behind_messages: int | None
    """How many messages it lacks; null while that is not known."""
    waiting_bytes: int
    """Bytes that were written to it and wait in its socket."""


class RunFollowers(msgspec.Struct, kw_only=True):
    """Who follows a run at one gateway."""

    here: Here
    followers: list[FollowerFigures]


class Outline(msgspec.Struct, kw_only=True):
    """Messages of a log without their bodies, in order: of the *n*-th each list has the *n*-th value."""

    seq_ids: list[int]
    kinds: list[str]
    bytes: list[int]
    stored_at_ms: list[int]
    """Milliseconds since 1970, by the clock of NATS."""

    @classmethod
    def of(cls, marks: Sequence[Mark]) -> Outline:
        """Make it of what was read."""
        return cls(
            seq_ids=[mark.seq for mark in marks],
            kinds=[mark.kind.value for mark in marks],
            bytes=[mark.bytes for mark in marks],
            stored_at_ms=[mark.stored_at_ms for mark in marks],
        )


class Figures:
    """Looks at runs that somebody may see: whose they are was asked before. Every call raises `Unavailable`."""

    def __init__(self, jetstream: JetStream, hub: Hub) -> None:
        self._jetstream = jetstream
        self._hub = hub
        self._places = asyncio.Semaphore(AT_ONE_TIME)

    async def of(self, records: Sequence[RunRecord]) -> list[RunFigures]:
        """Give the figures of runs, in their order."""
        looks = [asyncio.create_task(self._of(record), name="figures") for record in records]
        try:
            return await asyncio.gather(*looks)
        finally:
            await cancel_all(*looks)  # Of one that fails the others would go on, in places that others wait for.

    def followers(self, record: RunRecord) -> RunFollowers:
        """Say who follows a run here, in the order in which they came."""
        tail = self._hub.followed(record.id)
        found = [] if tail is None else [_follower(tail, follower) for follower in tail.followers]
        return RunFollowers(here=self._here(record), followers=found)

    async def outline(self, record: RunRecord, after: int, *, limit: int) -> Outline:
        """List a part of a run's log. Raises `CursorExpired`, `BrokenLog`."""
        async with self._places:
            outlined = partial(self._outlined, record, after, limit=limit)
            return Outline.of(await self._hub.reader.leaders.sure(outlined, CursorExpired))

    async def _outlined(self, record: RunRecord, after: int, *, limit: int) -> list[Mark]:
        address, reader = LogAddress(record.id, record.shard), self._hub.reader
        marks = await reader.outline(address, after, limit=limit)
        if not marks and not after and record.is_terminal and await reader.last(address) is None:
            raise CursorExpired(run_id=record.id)  # Of a run that has ended there was something.
        return marks

    async def _of(self, record: RunRecord) -> RunFigures:
        async with self._places:
            try:
                last = await self._hub.reader.last(LogAddress(record.id, record.shard))
            except BrokenLog:
                last = None  # Who follows it is told so.
            lease = None if record.is_terminal else await self._lease(record.id)
        return RunFigures(
            run_id=record.id,
            messages=0 if last is None else place_of(last) + 1,
            last_seq_id=None if last is None else last.seq,
            last_stored_at=None if last is None else _time_of(last.stored_at_ns),
            lease=lease,
            here=self._here(record),
        )

    async def _lease(self, run_id: str) -> LeaseFigures | None:
        found = await self._jetstream.last_message(INDEX_STREAM, subject_of(lease_key(run_id)))
        if found is None or KV_OPERATION in found.headers:
            return None
        seconds = found.headers.get(LEASE_SECONDS, "")
        try:
            length = float(seconds)
        except ValueError:
            length = self._hub.broker_settings.lease_seconds  # Of a run that nobody has taken up yet.
        # One of no length was let go: its writer writes no more, and no other has taken the run over yet.
        return LeaseFigures(renewed_at=_time_of(found.stored_at_ns), seconds=length) if length else None

    def _here(self, record: RunRecord) -> Here:
        tail = self._hub.followed(record.id)
        lags = [] if tail is None else [_lag(tail, follower) or 0 for follower in tail.followers]
        behind = 0 if tail is None else len(tail.followers) - tail.live_followers
        return Here(gateway=self._hub.name, followers=len(lags), behind=behind, lag_messages=max(lags, default=0))


def _lag(tail: RunTail, follower: Follower) -> int | None:
    if tail.tip is None or follower.cursor >= tail.tip.seq:
        return 0
    return None if follower.index is None else tail.tip.index - follower.index


def _follower(tail: RunTail, follower: Follower) -> FollowerFigures:
    age = time.monotonic() - follower.began_at
    return FollowerFigures(
        framing=FRAMINGS[follower.style],
        since=timestamp(datetime.fromtimestamp(time.time() - age, UTC)),
        began_after=follower.began_after,
        cursor=follower.cursor,
        behind_messages=_lag(tail, follower),
        waiting_bytes=follower.response.buffered,
    )


def _time_of(nanoseconds: int) -> str:
    return timestamp(datetime.fromtimestamp(nanoseconds / 1e9, UTC))
