"""Removes from the index what is left of runs whose log retention has removed, and the marks of deleted keys.

The bucket keeps one message for each key, so its stream is in the order in which the keys were last written. A sweep
reads each kind of keys from the oldest one, and stops at the first that is young: it never reads what is in use, and
conversations, which are kept for ever, not at all. It asks for one key after the other: a consumer of all the kinds
makes the server look through the whole stream, while whoever writes to it waits (half a second for 600,000 keys).

A key is removed by purging its subject up to the sequence that was read. Somebody who writes it meanwhile writes a
later one, which stays; and whoever was about to write it, expecting that sequence, is refused and reads again. A run's
record is deleted on the same condition, and its mark removed when that is old, a retention later: gateways keep lists
of runs, and nobody hears of a purge.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import TYPE_CHECKING, Self

import msgspec

from runstream.broker.auth.sessions import is_session
from runstream.broker.errors import BrokerError, NotStored, WrongLastSequence
from runstream.broker.jetstream import EXPECTED_LAST_SEQUENCE
from runstream.broker.keys import (
    KV_OPERATION,
    SWEPT_KINDS,
    is_token,
    key_of,
    lease_key,
    request_key,
    run_key,
    subject_of,
)
from runstream.broker.logs import get_logger
from runstream.broker.tasks import end_task, spread
from runstream.broker.topology import INDEX_STREAM, LogAddress, log_streams
from runstream.schemas import InvalidRecord, decode_run

if TYPE_CHECKING:
    from runstream.broker.jetstream import JetStream
    from runstream.broker.messages import StoredMessage
    from runstream.broker.metrics import BrokerMetrics
    from runstream.broker.settings import BrokerSettings

__all__ = ["Sweeper", "Swept", "oldest_kept", "sweep"]

log = get_logger(__name__)

MARGIN = 1.05
"""How much longer than retention a key is kept: a run's record is written before the last message of its log, and the
leaders of two streams may have different clocks."""
KEYS_PER_SECOND = 1000
"""One is removed after the other, which a writer of the index does not notice; the pauses leave the rest to others."""
KEYS_PER_PAUSE = 100
RETRY_SECONDS = 10.0
NANOSECONDS = 1_000_000_000


class Swept(msgspec.Struct):
    """What one sweep did."""

    read: int = 0
    """Keys, or the marks of deleted ones, that were old enough to be looked at."""
    removed: int = 0
    abandoned: int = 0
    """Runs among them that nobody had ended."""


class Sweeper:
    """Sweeps the index now and then. Use as an async context manager; a sweep that is broken off goes on another time.

    NATS being away only delays it.
    """

    def __init__(self, jetstream: JetStream, settings: BrokerSettings, metrics: BrokerMetrics) -> None:
        self._jetstream = jetstream
        self._settings = settings
        self._metrics = metrics
        self._sweeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._sweeping = asyncio.create_task(self._keep_sweeping(), name="sweeper")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sweeping is not None:
            await end_task(self._sweeping)

    async def _keep_sweeping(self) -> None:
        # Brokers that were started together must not all sweep at the same moment.
        pause = spread(self._settings.sweep_seconds)
        while True:
            await asyncio.sleep(pause)
            pause = self._settings.sweep_seconds
            try:
                began = time.monotonic()
                before_ns = await oldest_kept(self._jetstream, self._settings)
                swept = await sweep(self._jetstream, self._metrics, before_ns=before_ns)
            except BrokerError as error:
                pause = min(pause, RETRY_SECONDS)
                log.warning("sweep_delayed", error=str(error))
            except Exception:
                # A defect: the broker has better things to do than to end for it.
                log.exception("sweep_crashed")
            else:
                seconds = round(time.monotonic() - began, 3)
                log.info("index_swept", **msgspec.structs.asdict(swept), seconds=seconds)


async def oldest_kept(jetstream: JetStream, settings: BrokerSettings) -> int:
    """Return the time, in nanoseconds since 1970 on the index's own clock, before which a key is old."""
    kept = settings.retention
    for shard in await log_streams(jetstream):
        # As the streams were made: what this broker would make them with may be less.
        config = (await jetstream.api(f"STREAM.INFO.RUNS_{shard}", None))["config"]
        kept = max(kept, config["max_age"] / NANOSECONDS)
    now = datetime.fromisoformat((await jetstream.api(f"STREAM.INFO.{INDEX_STREAM}", None))["ts"])
    return int((now.timestamp() - kept * MARGIN) * NANOSECONDS)


async def sweep(jetstream: JetStream, metrics: BrokerMetrics, *, before_ns: int) -> Swept:
    """Look at every key that was last written before that time, and remove what no log needs. Raises `Unavailable`.

    Safe in any number of processes at once.
    """
    sweeping = _Sweep(jetstream, metrics, before_ns)
    await sweeping.run()
    return sweeping.done


class _Sweep:
    """One sweep."""

    def __init__(self, jetstream: JetStream, metrics: BrokerMetrics, before_ns: int) -> None:
        self.done = Swept()
        self._jetstream = jetstream
        self._metrics = metrics
        self._before_ns = before_ns
        self._pause_at = time.monotonic()

    async def run(self) -> None:
        first_seq = int((await self._jetstream.api(f"STREAM.INFO.{INDEX_STREAM}", None))["state"]["first_seq"])
        # The stream's first message comes last: as long as it is there, what follows a key is found at once. From the
        # first message on, the server looks for a pattern by going through every key there is.
        for kind in SWEPT_KINDS:
            await self._sweep_kind(subject_of(f"{kind}.>"), after=first_seq)
        first = await self._jetstream.message_at(INDEX_STREAM, first_seq)
        if first is not None and key_of(first.subject).partition(".")[0] in SWEPT_KINDS and self._is_old(first):
            await self._look_at(first)

    async def _sweep_kind(self, pattern: str, *, after: int) -> None:
        message = await self._jetstream.first_message(INDEX_STREAM, pattern, seq=after + 1)
        while message is not None and self._is_old(message):
            # Before this one is removed, as it may have become the stream's first.
            following = await self._jetstream.first_message(INDEX_STREAM, pattern, seq=message.seq + 1)
            await self._look_at(message)
            await self._pace()
            message = following

    def _is_old(self, message: StoredMessage) -> bool:
        return message.stored_at_ns < self._before_ns

    async def _pace(self) -> None:
        if self.done.read % KEYS_PER_PAUSE == 0:
            await asyncio.sleep(max(0.0, self._pause_at - time.monotonic()))
            self._pause_at = time.monotonic() + KEYS_PER_PAUSE / KEYS_PER_SECOND

    async def _look_at(self, message: StoredMessage) -> None:
        self.done.read += 1
        kind, _, rest = key_of(message.subject).partition(".")
        is_needed = KV_OPERATION not in message.headers and kind != "pulse"
        if is_needed:
            # Retention may be shorter than a session, which nothing in a log is about.
            is_ticket = kind == "ticket"
            is_needed = is_session(message.body) if is_ticket else await self._leads_to_a_run(kind, rest, message)
        if not is_needed:
            await self._remove(message)

    async def _leads_to_a_run(self, kind: str, rest: str, message: StoredMessage) -> bool:
        """Whether the run that an old key is about, or leads to, is kept. What names no run leads to none."""
        run = _run_of(kind, rest, message)
        if run is None:
            self._jetstream.findings.note(kind, message.subject, message.seq, "It names no run.")
            return False
        return not await self._is_gone(*run)

    async def _is_gone(self, tenant: str, run_id: str) -> bool:
        """Whether a run has no record. One that is old and without a log is removed, before what leads to it is."""
        record = await self._key(run_key(tenant, run_id))
        return record is None or (self._is_old(record) and await self._forget(record))

    async def _forget(self, message: StoredMessage) -> bool:
        """Remove a run's record if its log is gone, and it has ended or its writer, too, is long gone."""
        try:
            record = decode_run(message.body)
            address = LogAddress(record.id, record.shard)
            if await self._jetstream.last_message(address.stream, address.subject) is not None:
                return False
        except (InvalidRecord, NotStored) as error:
            # What cannot be read, or whose log's whole stream is gone, is for people to look at.
            self._jetstream.findings.note("run", message.subject, message.seq, str(error))
            return False
        if record.is_terminal:
            return await self._remove(message)
        lease = await self._key(lease_key(record.id))
        request = await self._key(request_key(record.tenant, record.id))
        if (lease is not None and not self._is_old(lease)) or not await self._remove(message):
            return False
        log.warning("run_abandoned", run_id=record.id, status=record.status, created_at=record.created_at)
        self._metrics.run_abandoned()
        self.done.abandoned += 1
        for left in filter(None, (lease, request)):
            await self._remove(left)
        return True

    async def _key(self, key: str) -> StoredMessage | None:
        """Read a key from the leader; None if it is absent or deleted."""
        message = await self._jetstream.last_message(INDEX_STREAM, subject_of(key))
        return None if message is None or KV_OPERATION in message.headers else message

    async def _remove(self, message: StoredMessage) -> bool:
        """Remove a key as it was read; False if it has been written again, or removed."""
        kind = key_of(message.subject).partition(".")[0]
        if kind == "run" and KV_OPERATION not in message.headers:
            is_removed = await self._mark(message)
        else:
            is_removed = await self._jetstream.purge(INDEX_STREAM, message.subject, through=message.seq) > 0
        if is_removed:
            self.done.removed += 1
            self._metrics.key_swept(kind)
        return is_removed

    async def _mark(self, message: StoredMessage) -> bool:
        """Delete a run's record instead of removing it: of what is purged nobody hears who keeps lists of runs."""
        headers = {KV_OPERATION: "DEL", EXPECTED_LAST_SEQUENCE: str(message.seq)}
        try:
            await self._jetstream.publish(message.subject, b"", headers)
        except WrongLastSequence:
            return False
        return True


def _run_of(kind: str, rest: str, message: StoredMessage) -> tuple[str, str] | None:
    """Read from a key and its value the tenant and the id of the run that it is about, or leads to; None: none."""
    value = message.body.decode(errors="replace")
    if kind in {"lease", "cancel"}:
        tenant, run_id = value, rest
    else:
        tenant, _, named = rest.partition(".")
        run_id = named if kind in {"run", "request"} else value
    return (tenant, run_id) if is_token(tenant) and is_token(run_id) else None
