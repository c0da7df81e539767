"""What retention removes from under those who use it."""

import pytest

from tests.support.http import Cut
from tests.support.stack import stack_running
from tests.support.waiting import wait_until


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
