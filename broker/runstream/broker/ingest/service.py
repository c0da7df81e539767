"""One request of a writer's: its chunks go into the log, and it is answered early if that is no longer to go on."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from runstream.broker.ending import Outcome, end_run
from runstream.broker.errors import BrokerError, Fenced, RunCancelled, RunTooLong, StoreFull, Unauthenticated, Unsettled
from runstream.broker.http_body import BadBody
from runstream.broker.ingest.appending import Appending
from runstream.broker.ingest.chunks import Lines, bodies_of, body_of_line
from runstream.broker.ingest.errors import IngestError, not_usable, translated
from runstream.broker.ingest.runs import PATIENCE_SECONDS, IngestedRuns, over
from runstream.broker.lease import Lease
from runstream.broker.limits.limiter import Limits
from runstream.broker.limits.settings import LimitSettings
from runstream.broker.logs import get_logger
from runstream.broker.publisher import Publisher, chunk_limit
from runstream.broker.reader import LogReader
from runstream.broker.tasks import Shielded, Turns, cancel_all, end_task

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
    from types import TracebackType

    from runstream.broker.auth.principal import Principal
    from runstream.broker.ingest.runs import Standing
    from runstream.broker.jetstream import JetStream
    from runstream.broker.metrics import BrokerMetrics
    from runstream.broker.settings import BrokerSettings
    from runstream.schemas import (
        OpenRunRequest,
        Trace,
    )

__all__ = ["Ingest"]

log = get_logger(__name__)

T = TypeVar("T")

STOPPING_SECONDS = 0.5
"""How long what has been read may take to be stored when the broker stops: then its writer is told how far it came."""
FAREWELL_SECONDS = 5.0
"""How long the end of a cancelled run may take; then its writer is told all the same, and a broker ends it."""
REVOKED = "The credential has expired, or was revoked: go on with a new one, with Expected-Index."
LEASE_FROM_CHUNKS = 256
"""Chunks from which on a request may take so long that it hears of cancels and renews the lease by itself: some 50 ms.
A shorter one gives one sign of life, if that is due."""


class Ingest:
    """What the ingest API does. Every call raises `IngestError`.

    Use as an async context manager: left, it tells whoever has a request open that this broker stops. `limits` None:
    those that the environment sets.
    """

    def __init__(
        self,
        jetstream: JetStream,
        settings: BrokerSettings,
        metrics: BrokerMetrics,
        limits: Limits | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.limits = limits or Limits(LimitSettings(), metrics.limit_reached)
        self.runs = IngestedRuns(jetstream, settings, metrics)
        self.uploads = 0
        self.requests = 0
        """How many are served, beside uploads."""
        self._jetstream = jetstream
        self._reader = LogReader(jetstream, settings)
        self._stopping = asyncio.Event()
        self._at_it = Shielded()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        await self._at_it.close(2 * STOPPING_SECONDS)

    def stop(self) -> None:
        """Take nothing more: whoever writes here is told to go on at another broker, uploads that are open, too."""
        self._stopping.set()

    @contextmanager
    def seat(self, who: Principal, *, is_upload: bool) -> Iterator[None]:
        """Count a request while the block lasts.

        Raises `IngestError` while there are as many as may be, `LimitReached` while `who` has as many uploads.
        """
        if is_upload and self.uploads >= self.settings.ingest_uploads:
            raise IngestError("broker_busy", "This broker has as many uploads open as may be. Try another one.")
        if not is_upload and self.requests >= self.settings.ingest_requests:
            raise IngestError("broker_busy", "This broker serves as many requests as it may. Try again.")
        with self.limits.stream(who) if is_upload else contextlib.nullcontext():
            self.uploads += is_upload
            self.requests += not is_upload
            try:
                yield
            finally:
                self.uploads -= is_upload
                self.requests -= not is_upload

    async def open(self, who: Principal, wanted: OpenRunRequest, trace: Trace | None) -> dict[str, object]:
        """Open a run, though its writer may leave meanwhile."""

        async def opened() -> Standing:
            self.limits.take_run(who)
            try:
                return await self.runs.open(who, wanted, trace)
            except Unsettled:
                raise  # There may be one.
            except BrokerError:
                self.limits.put_run_back(who)
                raise

        standing = await self._to_its_end(opened())
        return {"run_id": standing.record.id, "last_seq_id": standing.last.seq}

    async def keep_alive(self, who: Principal, run_id: str) -> dict[str, object]:
        """Give a sign of life; returns how long it lasts."""
        standing = await self._to_its_end(self.runs.standing(who, run_id))
        await self._to_its_end(self.runs.keep_alive(standing.record, at_once=True))
        return {"run_id": run_id, "lease_seconds": self.settings.lease_seconds}

    async def end(self, who: Principal, run_id: str, outcome: Outcome, expected_index: int | None) -> dict[str, object]:
        """End a run."""
        return await self._to_its_end(self.runs.end(who, run_id, outcome, expected_index))

    async def append(self, who: Principal, run_id: str, raw: bytes, expected_index: int | None) -> dict[str, object]:
        """Store the chunks of a JSON body, once all of them were looked at."""
        self.limits.take_ingest(who, len(raw))
        limit = chunk_limit(self._jetstream.connection.max_payload)
        bodies: list[bytes] = []
        turns = Turns()
        for checked in bodies_of(raw, run_id=run_id, limit=limit):
            if checked is not None:
                bodies.append(checked)
            await turns.give()

        async def read(appending: Appending) -> None:
            if len(bodies) > appending.room:
                raise RunTooLong(run_id=run_id)
            for body in bodies:
                await appending.take(body)

        async def stored() -> dict[str, object]:
            standing = await self.runs.standing(who, run_id)
            is_long = len(bodies) >= LEASE_FROM_CHUNKS
            return await self._write(standing, expected_index, read, is_long=is_long, patience_seconds=PATIENCE_SECONDS)

        return await self._to_its_end(stored())

    async def upload(
        self,
        who: Principal,
        run_id: str,
        pieces: AsyncGenerator[bytes],
        expected_index: int | None,
        revoked: asyncio.Event,
    ) -> dict[str, object]:
        """Store a body's lines as they come, and keep the run alive meanwhile, until its writer is `revoked`.

        Raises `ConnectionError` when its writer is gone; the lines that were complete are stored then, too.
        """
        lines = Lines(chunk_limit(self._jetstream.connection.max_payload))

        async def read(appending: Appending) -> None:
            turns = Turns()  # A ping is nothing to wait for.
            async with aclosing(pieces), aclosing(self._heard(pieces, lines)) as heard:
                async for complete in heard:
                    for line in complete:
                        await turns.give()
                        self.limits.take_ingest(who, len(line))
                        body = body_of_line(line, lines.count, run_id=run_id, limit=lines.limit)
                        if body is not None:
                            await appending.take(body)

        async def stored() -> dict[str, object]:
            standing = await self.runs.standing(who, run_id)
            return await self._write(standing, expected_index, read, is_long=True, revoked=revoked)

        return await self._to_its_end(stored())

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what must not be broken off because its writer leaves."""
        if self._stopping.is_set():
            work.close()
            raise _stopping()
        try:
            return await self._at_it.do(work, name="ingest")
        except BrokerError as error:
            raise translated(error) from error

    async def _heard(self, pieces: AsyncGenerator[bytes], lines: Lines) -> AsyncGenerator[Iterable[bytes]]:
        """Yield an upload's lines as they come, unless none is complete for too long.

        What counts is waiting: while lines are being stored, nobody listens, and the writer may well be talking.
        """
        clock = asyncio.get_running_loop().time
        patience = left = self.settings.ingest_silence_seconds
        while True:
            asked_at = clock()
            try:
                async with asyncio.timeout(left):
                    piece = await anext(pieces, None)
            except TimeoutError:
                raise IngestError("too_slow", f"No complete line came for {patience:g} s.") from None
            except BadBody as error:
                raise not_usable(error) from None
            if piece is None:
                yield lines.close()
                return
            left = patience if b"\n" in piece else left - (clock() - asked_at)
            yield lines.feed(piece)

    async def _write(
        self,
        standing: Standing,
        expected_index: int | None,
        read: Callable[[Appending], Awaitable[None]],
        *,
        is_long: bool,
        patience_seconds: float | None = None,
        revoked: asyncio.Event | None = None,
    ) -> dict[str, object]:
        """Store what `read` takes; returns what came of it. Raises `IngestError` that says how much of it is stored."""

        def stored(seconds: float) -> None:
            self.metrics.published(seconds)
            if publisher.failure is None:  # Else it is a part of the run's end.
                self.metrics.chunk_ingested()

        publisher = Publisher.after(
            standing.last,
            self._jetstream,
            standing.address,
            self.settings,
            patience_seconds=patience_seconds,
            observe=stored,
        )
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(publisher)
            try:
                appending = Appending(self._jetstream, self._reader, publisher, standing, expected_index)
            except IngestError:
                await self.runs.check_last(standing.record, standing.last)
                raise
            stack.push_async_callback(appending.close)
            try:
                if is_long:
                    lease = await stack.enter_async_context(self._lease(standing, publisher))
                    ends = [lease.over, publisher.failed]
                    await self._read(appending, read, ends, revoked or asyncio.Event())
                else:
                    with contextlib.suppress(StoreFull):  # Nor can anybody else's lease be renewed: none lapses.
                        await self.runs.keep_alive(standing.record)
                    await _all_of_it(appending, read)
            except RunCancelled as reason:
                raise await self._cancelled(standing, publisher, appending, reason) from None
            except Fenced as error:
                raise await self._fenced(standing, appending, error) from None
            except BrokerError as error:
                refused = translated(error)
                refused.facts.update(appending.facts())
                raise refused from error
            except IngestError as refused:
                refused.facts = {**appending.facts(), **refused.facts}
                raise
            return {**appending.facts()}

    def _lease(self, standing: Standing, publisher: Publisher) -> Lease:
        return Lease(
            self._jetstream,
            self.runs.index,
            publisher,
            tenant=standing.record.tenant,
            seconds=self.settings.lease_seconds,
            repaired=self.metrics.repaired,
        )

    async def _read(
        self,
        appending: Appending,
        read: Callable[[Appending], Awaitable[None]],
        ends: Sequence[asyncio.Future[BrokerError]],
        revoked: asyncio.Event,
    ) -> None:
        """Let `read` take what there is, and see it stored; raises what ends that before its time."""
        stopping = asyncio.create_task(self._stopping.wait(), name="ingest-stopping")
        revoking = asyncio.create_task(revoked.wait(), name="ingest-revoking")
        reading = asyncio.create_task(_all_of_it(appending, read), name="ingest-reading")
        try:
            waited: set[asyncio.Future[Any]] = {reading, stopping, revoking, *ends}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                if end.done():
                    raise end.result()
            if not reading.done():
                await end_task(reading)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STOPPING_SECONDS):
                        await appending.flush()
                raise translated(Unauthenticated(reason=REVOKED)) if revoked.is_set() else _stopping()
            reading.result()
        finally:
            await cancel_all(reading, stopping, revoking)

    async def _cancelled(
        self, standing: Standing, publisher: Publisher, appending: Appending, reason: RunCancelled
    ) -> IngestError:
        """End the run, as somebody wishes, and say how far it came."""
        facts: dict[str, Any] = {}
        self.runs.forget(standing.record.id)
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                publisher.cancel(reason)
                with contextlib.suppress(RunCancelled):
                    await appending.flush()
                facts = appending.facts()
                publisher.first_chunk_at = await self.runs.first_chunk_at(standing.record)
                await end_run(publisher, self.runs.index, standing.record, Outcome("cancelled"))
                self.runs.count_end(standing.record, "cancelled")
        except (BrokerError, TimeoutError) as error:
            # A broker's watchdog was faster, or will end it.
            log.info("run_left_to_others", run_id=standing.record.id, error=str(error))
        refused = over(standing.record, "cancelled")
        refused.facts.update(facts)
        return refused

    async def _fenced(self, standing: Standing, appending: Appending, error: Fenced) -> IngestError:
        """Say who has written to the log: the run's end, or another writer."""
        try:
            facts, stop_reason = await appending.fenced()
            refused = translated(error)
            if stop_reason is not None:
                stored = await self.runs.index.run(standing.record.tenant, standing.record.id)
                refused = over(standing.record if stored is None else stored.value, stop_reason)
        except BrokerError as unavailable:
            refused, facts = translated(unavailable), appending.facts()
        self.runs.forget(standing.record.id)
        refused.facts.update(facts)
        return refused


async def _all_of_it(appending: Appending, read: Callable[[Appending], Awaitable[None]]) -> None:
    """Read what there is, and see it stored; so is what came before something wrong."""
    try:
        await read(appending)
    except (IngestError, BrokerError, ConnectionError):
        await appending.flush()
        raise
    await appending.flush()


def _stopping() -> IngestError:
    return IngestError("broker_stopping", "This broker stops: go on at another one, with Expected-Index.")
