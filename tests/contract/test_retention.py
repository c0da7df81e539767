"""What retention removes from under those who use it."""

import pytest

from tests.support.http import Cut
from tests.support.stack import stack_running
from tests.support.waiting import wait_until


@pytest.mark.parametrize("is_held", [True, False], ids=["held in memory", "not held"])
async def test_the_beginning_is_gone_under_a_live_run(nats_url: str, is_held: bool) -> None:  # a test's parameter
    """Who stands behind what retention has removed goes on from there: it is gone only for who needs some of it.

    Also at the gateway where the run was made, which has known it from before its first message.
    """
    held = 100 if is_held else 4
    gateway = {"tail_chunks": held, "tail_fill_chunks": held // 2}
    async with stack_running(nats_url, gateway=gateway) as stack, stack.live(12) as (run_id, creator):
        record = await stack.record(run_id)
        seqs = [event.seq_id for event in creator.seen]
        await stack.purge_up_to(record, seqs[4] or 0)
        async with stack.resume(run_id, starting_after=seqs[6]) as stream:
            assert [event.seq_id for event in await stream.take(6)] == seqs[7:]
        if is_held:
            async with stack.resume(run_id, starting_after=seqs[2]) as stream:
                assert [event.seq_id for event in await stream.take(10)] == seqs[3:]
        else:
            reply = await stack.fetch("POST", f"/v1/runs/{run_id}/stream", json={"starting_after": seqs[2]})
            assert reply.status == 410


async def test_a_log_that_is_gone_under_a_live_run(nats_url: str) -> None:
    """Whoever follows a run whose log retention has removed while it was silent is told, and not left waiting."""
    # Short, as its record says so only when its lease has lapsed; longer than a machine stalls, or it is lost before.
    async with stack_running(nats_url, broker={"lease_seconds": 4}) as stack, stack.live(2) as (run_id, stream):
        record = await stack.record(run_id)
        await stack.purge_up_to(record, await stack.tip(record))
        stack.puppet.say(run_id)  # Its writer finds that the log is gone, and stops.
        with pytest.raises(Cut):
            await stream.rest(deadline=20)
        assert (stream.seen[-1].event, stream.seen[-1].json["error_type"]) == ("error", "expired")
        reply = await stack.fetch("POST", f"/v1/runs/{run_id}/stream", json={})
        assert reply.status == 410

        async def has_failed() -> bool:
            return (await stack.record(run_id)).status == "failed"

        # What is told is shown before the record says so.
        await wait_until(has_failed, 20)
