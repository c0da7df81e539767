"""The watchdog where a defect, a full store or another lease could make it end too much, or nothing."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from runstream.broker.bucket import Stored
from runstream.broker.ending import Outcome, end_run, failed
from runstream.broker.errors import Unavailable
from runstream.broker.index import Index
from runstream.broker.keys import run_key, subject_of
from runstream.broker.lease import Lease
from runstream.broker.metrics import BrokerMetrics
from runstream.broker.publisher import Publisher
from runstream.broker.queue import WorkQueue
from runstream.broker.repair import Repair
from runstream.broker.survey import stored_at
from runstream.broker.topology import LogAddress
from runstream.broker.watchdog import Watchdog
from runstream.schemas import RunRecord, UsageStatistics, completion_timestamp, encode_run
from tests.support.core import Core, chunk
from tests.support.runs import empty_queue, over, submit
from tests.support.waiting import wait_until


@pytest_asyncio.fixture(autouse=True)
async def _queue(core: Core) -> AsyncIterator[None]:
    await empty_queue(core)
    yield


def watchdog(core: Core, index: Index | None = None, **settings: Any) -> Watchdog:
    chosen = core.settings.model_copy(update=settings)
    queue = WorkQueue(core.jetstream)
    return Watchdog(core.jetstream, chosen, index=index or Index(core.jetstream), queue=queue, metrics=BrokerMetrics())


@contextlib.asynccontextmanager
async def speaking(core: Core) -> AsyncIterator[tuple[RunRecord, Publisher]]:
    """A run that has said something, and its writer, which does nothing more."""
    run = await submit(core)
    address = LogAddress(run.id, run.shard)
    last = await core.jetstream.last_message(address.stream, address.subject)
    assert last is not None
    async with Publisher.after(last, core.jetstream, address, core.settings) as publisher:
        await publisher.publish(chunk(0))
        yield await core.index.begin(run, first_seq=last.seq), publisher


class Defective(Index):
    """An index whose pulse fails, once, with what nobody expects."""

    pulses = 0

    async def pulse(self, broker_id: str) -> int:
        self.pulses += 1
        if self.pulses == 3:
            raise ValueError("a defect, once")
        return await super().pulse(broker_id)


async def test_a_defect_does_not_end_the_watch(core: Core) -> None:
    """An error that nobody expects is logged, and runs whose writers die later are ended all the same."""
    index = Defective(core.jetstream)
    with capture_logs() as logs:
        async with watchdog(core, index):
            await wait_until(lambda: index.pulses > 4)
            async with speaking(core) as (run, _):
                record = await over(core, run, core.settings.lease_seconds + 5)
    assert (record.error or {})["error_type"] == "run_lost"
    assert "watchdog_crashed" in [line["event"] for line in logs]


class Away(Index):
    """An index that takes no pulse until it is there again."""

    is_there = False

    async def pulse(self, broker_id: str) -> int:
        if not self.is_there:
            raise Unavailable("away, by a test")
        return await super().pulse(broker_id)


async def test_no_lease_has_lapsed_before_it_could_be_renewed(core: Core) -> None:
    """While no pulse comes back a lease has not lapsed for a worker either, who may have the run's message again."""
    index = Away(core.jetstream)
    async with speaking(core) as (run, _), watchdog(core, index) as looking:
        await wait_until(lambda: run.id in looking._leases)
        await asyncio.sleep(2 * core.settings.lease_seconds)  # how long nobody can renew it, and not a wait
        assert not await looking.has_lapsed(run.id)
        index.is_there = True
        record = await over(core, run, core.settings.lease_seconds + 5)
    assert (record.error or {})["error_type"] == "run_lost"


async def test_a_writer_whose_lease_is_longer_lives(core: Core) -> None:
    """A writer that renews as its own lease demands is not taken for dead by a broker whose lease is shorter."""
    long = 4 * core.settings.lease_seconds
    async with speaking(core) as (run, publisher), watchdog(core):
        async with Lease(core.jetstream, core.index, publisher, tenant=run.tenant, seconds=long) as lease:
            await asyncio.sleep(2 * core.settings.lease_seconds)  # longer than the broker's lease, and not a wait
            assert not lease.over.done()
            await publisher.publish(chunk(1))
            renewed = await core.index.lease(run.id)
            await asyncio.sleep(core.settings.lease_seconds)  # as above
            assert await core.index.lease(run.id) != renewed, "it does not renew its lease"
        record = await over(core, run)  # A broker that was kept from looking gives it as long once more.
    assert (record.error or {})["error_type"] == "run_lost"


async def test_ends_that_cannot_be_stored_are_not_tried_all_the_time(core: Core) -> None:
    """Where the log is full each lapsed run is tried once a lease, and ends when there is room."""
    async with contextlib.AsyncExitStack() as stack:
        runs = [(await stack.enter_async_context(speaking(core)))[0] for _ in range(20)]
        info = await core.jetstream.api("STREAM.INFO.RUNS_0", None)
        full = {**info["config"], "max_bytes": info["state"]["bytes"] + 10}
        await core.jetstream.api("STREAM.UPDATE.RUNS_0", full)
        try:
            with capture_logs() as logs:
                began_at = time.monotonic()
                async with watchdog(core):
                    await asyncio.sleep(3.5 * core.settings.lease_seconds)
                leases = (time.monotonic() - began_at) / core.settings.lease_seconds
        finally:
            await core.jetstream.api("STREAM.UPDATE.RUNS_0", info["config"])
        tries = Counter(line["run_id"] for line in logs if line["event"] == "run_not_looked_after")
        # Not those of other tests' runs, which the same watchdog looks after.
        assert all(1 <= tries[run.id] <= int(leases) for run in runs), (tries, leases)
        async with watchdog(core):
            records = [await over(core, run) for run in runs]
    assert {(record.error or {})["error_type"] for record in records} == {"run_lost"}


async def test_a_defect_does_not_end_a_lease(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renewal that fails with what nobody expects is followed by one that does not, and the run lives."""
    renew, tries = Index.renew_lease, 0

    async def defective(self: Index, *args: Any, **options: Any) -> int:
        nonlocal tries
        tries += 1
        if tries == 2:
            raise ValueError("a defect, once")
        return await renew(self, *args, **options)

    async with speaking(core) as (run, publisher), watchdog(core):
        monkeypatch.setattr(Index, "renew_lease", defective)
        seconds = core.settings.lease_seconds
        async with Lease(core.jetstream, core.index, publisher, tenant=run.tenant, seconds=seconds) as lease:
            await wait_until(lambda: tries > 8)
            assert not lease.over.done()
            assert not await core.is_over(run)
        await over(core, run)


async def test_a_wish_that_nobody_heard_is_found_with_the_next_renewal(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer to which no news came reads the wish when it renews its lease."""

    async def hear_nothing(*_: object) -> None:
        pass

    monkeypatch.setattr(Lease, "_wished", hear_nothing)
    async with speaking(core) as (run, publisher):
        seconds = core.settings.lease_seconds
        async with Lease(core.jetstream, core.index, publisher, tenant=run.tenant, seconds=seconds) as lease:
            await core.index.wish_cancelled(run.tenant, run.id)
            await wait_until(lease.over.done, seconds)


async def test_a_run_without_a_record_is_ended_by_what_its_log_says(core: Core) -> None:
    """A run whose record was deleted, and whose writer is dead, ends as lost and has a record again."""
    async with speaking(core) as (run, _):
        await core.jetstream.publish(subject_of(run_key(run.tenant, run.id)), b"", {"KV-Operation": "DEL"})
        async with watchdog(core):
            await wait_until(lambda: core.is_over(run), core.settings.lease_seconds + 5)
            record = await over(core, run)
    assert ((record.error or {})["error_type"], record.agent_id) == ("run_lost", run.agent_id)
    assert record.first_seq == run.first_seq


async def test_a_run_without_a_record_that_nobody_has_begun_is_ended_too(core: Core) -> None:
    """Put on the queue it would be unknown to every worker, for ever: it is lost, and has a record again."""
    run = await submit(core)
    await core.jetstream.publish(subject_of(run_key(run.tenant, run.id)), b"", {"KV-Operation": "DEL"})
    async with watchdog(core):
        await wait_until(lambda: core.is_over(run), core.settings.lease_seconds + 5, "it waits for ever")
        record = await over(core, run)
    assert ((record.error or {})["error_type"], record.conversation_id) == ("run_lost", run.conversation_id)


class Meanwhile(Index):
    """An index in which a writer does something just before the record of its run is read."""

    def __init__(self, core: Core, run: RunRecord, action: Callable[[], Awaitable[None]]) -> None:
        super().__init__(core.jetstream)
        self._run_id = run.id
        self._action = action
        self.reads = 0

    async def run(self, tenant: str, run_id: str) -> Stored[RunRecord] | None:
        if run_id == self._run_id:
            self.reads += 1
            if self.reads == 1:
                await self._action()
        return await super().run(tenant, run_id)


async def test_a_writer_that_comes_back_while_its_lease_is_looked_at_lives(core: Core) -> None:
    """A run that is written again after its lease was found lapsed is not ended: its writer was seen to live."""
    seconds = core.settings.lease_seconds
    async with speaking(core) as (run, publisher), contextlib.AsyncExitStack() as stack:

        async def come_back() -> None:
            lease = Lease(core.jetstream, core.index, publisher, tenant=run.tenant, seconds=seconds)
            await stack.enter_async_context(lease)
            await publisher.publish(chunk(1))

        index = Meanwhile(core, run, come_back)
        with capture_logs() as logs:
            async with watchdog(core, index):
                await wait_until(lambda: index.reads > 0, seconds + 5)
                await asyncio.sleep(2 * seconds)  # in which it would be ended, and not a wait
                await publisher.publish(chunk(2))
        ended = [line["run_id"] for line in logs if line["event"] == "run_ended_by_watchdog"]
        assert run.id not in ended


async def test_a_run_that_is_met_is_looked_after(core: Core) -> None:
    """One that goes on without a lease gets one; one that has ended since it was read does not."""
    kinds: list[str] = []
    repair = Repair(core.jetstream, core.settings, core.index, observe=kinds.append)
    async with speaking(core) as (run, publisher):
        await repair.watch_over(run)
        assert kinds == []
        await core.index.forget(run.id)
        await repair.watch_over(run)
        assert kinds == ["lease_missing"]
        assert await core.index.lease(run.id) is not None
        await end_run(publisher, core.index, run, Outcome("end_turn"))
        await repair.watch_over(run)
    assert kinds == ["lease_missing"]
    assert await core.index.lease(run.id) is None


@pytest.mark.parametrize("is_met", [True, False], ids=["met", "by its lease"])
@pytest.mark.parametrize("went_well", [True, False], ids=["completed", "failed"])
async def test_a_record_that_was_not_ended_says_all_that_its_log_does(
    core: Core, went_well: bool, is_met: bool
) -> None:
    """Its error, its usage and the time of its end are the log's, whoever makes it terminal."""
    async with speaking(core) as (run, publisher):
        came_to = (
            Outcome("end_turn", usage=UsageStatistics(total_tokens=7)) if went_well else failed(run.id, "llm_error")
        )
        await end_run(publisher, core.index, run, came_to)
        end = await core.jetstream.last_message(publisher.address.stream, publisher.address.subject)
    truth = await core.record(run)
    await core.jetstream.publish(subject_of(run_key(run.tenant, run.id)), encode_run(run), {})
    if is_met:
        repair = Repair(core.jetstream, core.settings, core.index, observe=lambda _: None)
        assert await repair.ended(run.tenant, run.id)
    else:
        await core.index.restore_lease(run.tenant, run.id)
        async with watchdog(core):
            await over(core, run)
    mended = await core.record(run)
    assert end is not None
    assert (mended.status, mended.stop_reason) == (truth.status, truth.stop_reason)
    assert (mended.error, mended.usage) == (truth.error, truth.usage)
    assert mended.completed_at == completion_timestamp(stored_at(end))
