"""What goes wrong around a run before it says anything: workers that die over it, and messages that name none."""

import pytest

from runstream.broker.log import entry_of
from runstream.broker.publisher import Write
from runstream.broker.queue import WorkQueue
from runstream.broker.service import Broker
from runstream.broker.takeover import MOST_ATTEMPTS
from runstream.broker.topology import LogAddress, provision
from runstream.schemas import Kind, RunRecord
from tests.support.core import Core, kinds
from tests.support.runs import answer, empty_queue, over, queue_empty, scripted, submit


async def attempted(core: Core, times: int) -> RunRecord:
    """A run over which that many workers have died."""
    run = await submit(core)
    address = LogAddress(run.id, run.shard)
    first = await core.jetstream.last_message(address.stream, address.subject)
    assert first is not None
    async with core.publisher(address, last_seq=first.seq, next_index=entry_of(first).index + 1) as publisher:
        for _ in range(times):
            await publisher.publish_marked(Write(Kind.ATTEMPT, b""))
    return run


@pytest.mark.parametrize(
    ("died", "status", "said"), [(MOST_ATTEMPTS - 1, "completed", 3), (MOST_ATTEMPTS, "failed", 0)]
)
async def test_so_many_workers_may_die_over_one_run(core: Core, died: int, status: str, said: int) -> None:
    """One attempt short of the limit the run is executed; at the limit it ends as lost, and kills nobody else."""
    await empty_queue(core)
    run = await attempted(core, died)
    async with Broker(core.settings, agent=scripted(*answer(3))):
        record = await over(core, run)
        await queue_empty(core)
    stored = await core.stored(LogAddress(run.id, run.shard))
    assert record.status == status
    assert (record.error or {}).get("error_type") == ("run_lost" if status == "failed" else None)
    assert kinds(stored).count(Kind.DATA) == said


async def test_a_worker_renews_as_often_as_the_queue_expects(core: Core) -> None:
    """A queue made under a shorter lease than this broker's still hands a living worker's run to nobody else."""
    await empty_queue(core)
    await provision(core.jetstream, core.settings.model_copy(update={"lease_seconds": 1.0}), apply=True)
    assert await WorkQueue(core.jetstream).hold_seconds() == 1.0
    async with Broker(core.settings.model_copy(update={"lease_seconds": 60.0}), agent=scripted(*answer(1))) as broker:
        assert broker.worker is not None
        assert broker.worker.hold_seconds == 1.0


async def test_a_message_that_cannot_be_read_stops_nobody(core: Core) -> None:
    """Junk on the work queue is taken off, and the run behind it is executed."""
    await empty_queue(core)
    async with Broker(core.settings, agent=scripted(*answer(2))):
        await core.jetstream.publish("work.default", b"junk", {})
        await core.jetstream.publish("work.default", b"{}", {})
        run = await submit(core)
        assert (await over(core, run)).status == "completed"
        await queue_empty(core)
