"""A run's newest entries as they are stored: live messages, and the log wherever those leave a hole.

The server republishes each stored message on core NATS, at most once. A live message is shown only if it follows
directly on the last entry shown (it names the sequence before its own); anything else means that the log knows more.
Then one thing happens, whatever the cause (joining, a dropped message, a reconnect, a suspicious silence): the log is
read from the last entry shown up to the newest sequence heard of.

The invariant: *entries are handed on in order, each once, and without a hole*, because `_last` only ever moves to the
entry that follows it, in `_show`, with no await between the check and the move.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from runstream.broker.errors import BrokenLog, BrokerError, CursorExpired, Unavailable
from runstream.broker.leaders import surely_last
from runstream.broker.log import Entry, entry_of, last_of, live_entry, whole
from runstream.broker.logs import get_logger
from runstream.broker.messages import STORED_AT
from runstream.schemas import Kind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from runstream.broker.connection import Message, Subscription
    from runstream.broker.jetstream import JetStream
    from runstream.broker.reader import LogReader
    from runstream.broker.settings import BrokerSettings
    from runstream.broker.topology import LogAddress

__all__ = ["LiveTail", "TailCounters"]

log = get_logger(__name__)

SAMPLED = 16
"""Of so many live messages one is timed, by its sequence: to read its time and to count it takes 2.5 microseconds."""
LONGEST_SILENCE_FACTOR = 4
"""A run that stays silent is looked at ever more rarely, up to this many times the first interval."""


class TailCounters:
    """What the tails of one process have seen, for metrics."""

    def __init__(self) -> None:
        self.holes_repaired = 0
        self.tip_checks = 0


class LiveTail:
    """Follows one run from a given sequence. Hands entries to `on_entries`, a failure to `on_failure`, once.

    `on_sample` is told when NATS stored the live message that was just handed on, of every `SAMPLED`th.

    `on_entries` is called from the event loop with one or more entries and must not block. Nothing is handed on after
    the run's end. `open` returns when the tail has shown everything that was stored before it was called.
    """

    def __init__(
        self,
        jetstream: JetStream,
        reader: LogReader,
        settings: BrokerSettings,
        address: LogAddress,
        *,
        counters: TailCounters,
        on_entries: Callable[[Sequence[Entry]], None],
        on_failure: Callable[[BrokerError], None],
        on_sample: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.address = address
        self.ended = False
        self._jetstream = jetstream
        self._reader = reader
        self._settings = settings
        self._counters = counters
        self._on_entries = on_entries
        self._on_failure = on_failure
        self._on_sample = on_sample
        self._last = 0
        self._last_index: int | None = None
        self._newest = 0
        self._held: list[Entry] = []
        self._reading = True
        self._wake = asyncio.Event()
        self._suspect = False
        self._defect: Exception | None = None
        self._heard_at, self._silences = time.monotonic(), 0
        self._subscription: Subscription | None = None
        self._unlisten: Callable[[], None] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def open(self, start: Callable[[Entry | None], Awaitable[int]]) -> Entry | None:
        """Begin, and return the log's tip; None when the log has no messages yet.

        `start` is told the tip and says after which sequence to begin. Raises `CursorExpired`, `Unavailable`.
        """
        # Subscribed first, tip asked second, on one connection: a message stored in between is heard of twice,
        # never not at all. (In a cluster the two may overtake each other; then the chain or the silence shows it.)
        connection = self._jetstream.connection
        self._subscription = await connection.listen(self.address.live_subject, self._on_messages)
        self._unlisten = connection.on_reconnect(self._on_reconnect)
        tip = await self._tip()
        self._last = await start(tip)
        if tip is not None:
            self._newest = max(self._newest, tip.seq)
            if tip.index == 0 or self._last == tip.seq - 1:
                # Nothing is before it that would have to be read. If it cannot be shown, the reading says so.
                with contextlib.suppress(BrokenLog):
                    self._show([whole(tip)])
        await self._catch_up()
        if self.ended:
            await self._stop_listening()
        else:
            self._watch = asyncio.create_task(self._watch_over(), name=f"tail-{self.address.run_id}")
            self._watch.add_done_callback(self._watched)
        return tip

    async def close(self) -> None:
        """Leave nothing behind: no task, no subscription, no listener; not even if whoever closes it is cancelled."""
        watch, self._watch = self._watch, None
        try:
            if watch is not None and watch is not asyncio.current_task():
                watch.cancel()
                # Not awaited itself: what it raised has been reported, and must not keep the rest from being let go.
                await asyncio.wait([watch])
        finally:
            await self._stop_listening()

    async def _stop_listening(self) -> None:
        unlisten, self._unlisten = self._unlisten, None
        if unlisten is not None:
            unlisten()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.close()

    async def _tip(self) -> Entry | None:
        self._counters.tip_checks += 1
        message = await last_of(self._jetstream, self.address)
        return None if message is None else entry_of(message)

    async def _surely_tip(self) -> Entry | None:
        """Ask for the tip of a log that was not empty, and is: a leader may have lost the others, or be new."""
        message = await surely_last(self._jetstream, self.address)
        return None if message is None else entry_of(message)

    def _on_messages(self, messages: Sequence[Message]) -> None:
        """Take what came at one time. What of it follows on the last entry is shown together."""
        try:
            if self._defect is None:
                self._hear(messages)
        except Exception as defect:  # noqa: BLE001  # whoever handed it on would go on, with the entry left out
            self._defect = defect
            self._wake.set()

    def _hear(self, messages: Sequence[Message]) -> None:
        follows: list[Entry] = []
        last, stored_at = self._last, ""
        try:
            for message in messages:
                entry, previous = self._live_entry(message)
                if entry is None:
                    continue
                self._heard_at, self._silences = time.monotonic(), 0
                self._newest = max(self._newest, entry.seq)
                if self._reading or entry.seq <= last:
                    continue  # The reading goes on until it has met `_newest`; below the last one it is a duplicate.
                if previous != last:
                    self._reading = True
                    self._wake.set()
                    continue
                follows.append(entry)
                last = entry.seq
                if not last % SAMPLED:
                    stored_at = (message.headers or {}).get(STORED_AT, "")
        finally:
            if follows:
                self._show(follows)
        if stored_at and not self._held:
            self._on_sample(stored_at)

    def _live_entry(self, message: Message) -> tuple[Entry | None, int]:
        """Read what a message brings, None if it is none of this log's. Raises `BrokenLog`, noted."""
        # What comes by a consumer that somebody had deliver to this subject keeps the one that it is stored under.
        if message.subject != self.address.live_subject:
            return None, 0  # It is passed over: what follows it shows a hole, and the log says what belongs there.
        try:
            return live_entry(message)
        except BrokenLog as broken:
            seq = int((message.headers or {}).get("Nats-Sequence", 0))
            self._jetstream.findings.note("message", self.address.subject, seq, str(broken))
            raise

    def _on_reconnect(self) -> None:
        self._suspect = True
        self._wake.set()

    def _show(self, entries: Sequence[Entry]) -> None:
        """Hand on what follows, an error only with the end behind it.

        letta-client stops reading at the error, and its user may write to the conversation at once: by then the run
        must be over.
        """
        shown, self._held = self._held, []
        for entry in entries:
            if self.ended or entry.seq <= self._last:
                continue
            self._last, self._last_index = entry.seq, entry.index
            shown.append(entry)
            self.ended = entry.kind is Kind.END
        if shown and shown[-1].kind is Kind.ERROR:
            self._held = [shown.pop()]
        if shown:
            self._on_entries(shown)
        if self.ended:
            self._wake.set()

    def _read(self) -> AsyncGenerator[list[Entry]]:
        return self._reader.read(self.address, self._last, self._newest, after_index=self._last_index)

    async def _catch_up(self) -> None:
        """Read the log until it has met the newest sequence heard of; live messages are shown again from then on."""
        self._reading = True
        while self._last < self._newest and not self.ended:
            before = self._last
            async with aclosing(self._read()) as batches:
                async for entries in batches:
                    self._show(entries)
            if self._last == before:
                raise CursorExpired(seq=self._newest)  # It is not there any more, and somebody else's messages are.
        # No await since the last comparison: a message that arrives now follows on `_last`, or is a hole again.
        self._reading = False

    async def _watch_over(self) -> None:
        try:
            while not self.ended:
                await self._wait_for_doubt()
                if self._defect is not None:
                    raise self._defect
                hole = self._last if self._reading else None
                if self._suspect:
                    self._suspect = False
                    await self._compare_with_leader()
                if not self.ended:
                    await self._catch_up()
                if hole is not None:
                    self._counters.holes_repaired += 1
                    log.info("hole_repaired", run_id=self.address.run_id, after=hole, now=self._last)
        except BrokerError as error:
            self._on_failure(error)
        await self._stop_listening()

    def _watched(self, watch: asyncio.Task[None]) -> None:
        """Make a defect in the watching the followers' failure: a tail nobody watches would keep them for ever."""
        if not watch.cancelled() and (defect := watch.exception()) is not None:
            log.error("tail_crashed", run_id=self.address.run_id, exc_info=defect)
            self._on_failure(BrokerError(f"The tail of {self.address.run_id} failed: {defect!r}"))

    async def _wait_for_doubt(self) -> None:
        """Return when there is reason to look at the log: a hole, a reconnect, the end, or a silence."""
        while not self._wake.is_set():
            patience = self._settings.silence_seconds * min(2**self._silences, LONGEST_SILENCE_FACTOR)
            remaining = self._heard_at + patience - time.monotonic()
            if remaining <= 0:
                self._suspect = True
                self._silences += 1
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(remaining):
                    await self._wake.wait()
        self._wake.clear()

    async def _compare_with_leader(self) -> None:
        """Ask the leader for the tip until it answers, for as long as a reader may wait."""
        deadline = time.monotonic() + self._settings.read_patience_seconds
        while True:
            shown = self._last
            try:
                tip = await self._tip() or (await self._surely_tip() if shown else None)
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(self._settings.silence_seconds / 4)
                continue
            self._heard_at = time.monotonic()
            if tip is not None:
                self._newest = max(self._newest, tip.seq)
            elif shown:
                # The run was removed, its end with it: of an empty log nothing will ever come. Not so of one that was
                # empty when it was asked for, and has had its first message since.
                raise CursorExpired
            return
