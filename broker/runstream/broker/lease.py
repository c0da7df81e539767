"""A writer's lease on its run: signs of life while it writes, and word when the run is no longer its to write.

The lease says that the writer lives; what keeps two writers apart is the fence of the log. So a lease that is gone
proves nothing: the log tells whether the run was ended, or given to another writer, or whether the index was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Self

from runstream.broker.errors import BrokerError, Fenced, RunCancelled, Unavailable, WrongLastSequence
from runstream.broker.keys import KV_OPERATION, cancel_key, live_subject
from runstream.broker.leaders import surely_last
from runstream.broker.logs import get_logger
from runstream.broker.tasks import end_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from runstream.broker.connection import Message
    from runstream.broker.index import Index
    from runstream.broker.jetstream import JetStream
    from runstream.broker.publisher import Publisher

__all__ = ["RENEWALS_PER_LEASE", "Lease"]

log = get_logger(__name__)

RENEWALS_PER_LEASE = 3
RETRY_SECONDS = 0.2
RACES = 10
"""How often the lease is tried again that others renew, too: requests of one run that go to several brokers do so."""


class Lease:
    """One run's lease, held by the writer that has `publisher`. Use as an async context manager.

    `over` is resolved with the reason when the writer must stop: `RunCancelled`, somebody wishes that the run end, and
    this writer is to end it; `Fenced`, the run is another's, or has ended. `alongside` is called with each renewal,
    `repaired` is told of a lease that was gone and is written anew.

    Entering it takes the lease from whoever had it; raises `StoreFull` and `Unavailable`, and `Fenced` when the run was
    another's by then, or had ended: from here on whoever takes it leaves the lease with another revision, or none. Of
    what goes wrong later the writer hears nothing: it tries again, as whoever watches the lease cannot reach the index
    either.
    """

    def __init__(
        self,
        jetstream: JetStream,
        index: Index,
        publisher: Publisher,
        *,
        tenant: str,
        seconds: float,
        alongside: Callable[[], Awaitable[None]] | None = None,
        repaired: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.over: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()
        self._jetstream = jetstream
        self._index = index
        self._publisher = publisher
        self._tenant = tenant
        self._run_id = publisher.address.run_id
        self._seconds = seconds
        self._interval = seconds / RENEWALS_PER_LEASE
        self._alongside = alongside
        self._repaired = repaired
        self._revision = 0
        self._look = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            connection = self._jetstream.connection
            # Heard of first, looked for second: a wish that comes in between is seen twice, never not at all.
            subscription = await connection.subscribe(live_subject(cancel_key(self._run_id)), self._wished)
            stack.push_async_callback(subscription.close)
            stack.callback(connection.on_reconnect(self._look.set))
            self._revision = await self._index.restore_lease(self._tenant, self._run_id)
            self._revision = await self._renewed()
            # Taken first, asked second. Who has stored nothing yet has no log, and is fenced when it begins one.
            if self._publisher.last_seq and not await self._owns_log():
                raise Fenced("It was another's before this writer had its lease.", run_id=self._run_id)
            await self._look_for_wish()
            for work in (self._renew(), self._look_for_wishes()):
                task = asyncio.create_task(work, name=f"lease-{self._run_id}")
                stack.push_async_callback(end_task, task)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def let_go(self) -> None:
        """Renew it no more, and have it count as lapsed from now on. Only for a writer that writes nothing any more.

        Raises TimeoutError, `Unavailable`, `Fenced`: then it lapses in its own time.
        """
        await self._stack.aclose()
        self._seconds = 0.0
        async with asyncio.timeout(self._interval):
            await self._renewed()

    def _stop(self, reason: BrokerError) -> None:
        if not self.over.done():
            self.over.set_result(reason)

    async def _wished(self, message: Message) -> None:
        if KV_OPERATION not in (message.headers or {}):
            self._stop(RunCancelled(run_id=self._run_id))

    async def _look_for_wish(self) -> None:
        if await self._index.is_wished_cancelled(self._run_id):
            self._stop(RunCancelled(run_id=self._run_id))

    async def _look_for_wishes(self) -> None:
        """Look after each reconnect: what was wished meanwhile nobody has said."""
        while True:
            await self._look.wait()
            self._look.clear()
            try:
                await self._look_for_wish()
            except Exception as error:
                if not isinstance(error, BrokerError):
                    log.exception("lease_crashed", run_id=self._run_id)
                await asyncio.sleep(RETRY_SECONDS)
                self._look.set()

    async def _renew(self) -> None:
        due = time.monotonic() + self._interval
        is_late = False
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = time.monotonic() + self._interval
            try:
                # No longer: a try that was lost in an outage must not keep the next one from coming before whoever
                # watches the lease since the outage's end sees it lapse.
                async with asyncio.timeout(self._interval):
                    if self._alongside is not None:
                        await self._alongside()
                    self._revision = await self._renewed()
                    # News of a wish may be lost on its way: this finds it, late.
                    await self._look_for_wish()
                is_late = False
            except Fenced as fenced:
                self._stop(fenced)
                return
            except (BrokerError, TimeoutError) as error:
                # An outage is the same for every run and every try: said once is enough.
                say = log.debug if is_late else log.warning
                say("lease_not_renewed", run_id=self._run_id, error=str(error) or "It took too long.")
                is_late = True
            except Exception:
                # A defect: trying goes on all the same, as a lease that is not renewed ends a living run.
                log.exception("lease_crashed", run_id=self._run_id)

    async def _renewed(self) -> int:
        """Write the lease; returns its revision. Raises `Fenced` when the run is no longer this writer's."""
        for _ in range(RACES):
            try:
                return await self._renew_at(self._revision)
            except WrongLastSequence:
                # Renewed by a try whose answer was lost, or by another writer; or the lease is gone.
                await self._find_revision()
        raise Unavailable("Others renew its lease all the time.", run_id=self._run_id)

    async def _find_revision(self) -> None:
        """Read the revision that the lease has now, or restore it. Raises `Fenced` as `_renewed`."""
        # As it is: what somebody else may have written there is overwritten by whoever owns the log.
        revision = await self._index.lease_revision(self._run_id)
        if revision is not None:
            # Kept whatever comes of this try: one that NATS is too slow for would else be followed by one that begins
            # with a write that is refused, and so on until the lease has lapsed.
            self._revision = revision
        if not await self._owns_log():
            raise Fenced("Its lease is gone, or another's.", run_id=self._run_id) from None
        if revision is None:
            self._revision = await self._index.restore_lease(self._tenant, self._run_id)
            self._repaired("lease_missing")
            log.warning("lease_restored", run_id=self._run_id)

    async def _renew_at(self, revision: int) -> int:
        return await self._index.renew_lease(self._tenant, self._run_id, revision, seconds=self._seconds)

    async def _owns_log(self) -> bool:
        """Tell whether nobody has written to the log after this writer, nor ended it."""
        address = self._publisher.address
        last = await surely_last(self._jetstream, address)
        if last is None:
            return False
        # Older than what this writer has stored: the log's leader is new and lags.
        return last.seq < self._publisher.last_seq or self._publisher.may_follow(last)
