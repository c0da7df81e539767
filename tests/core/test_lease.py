"""A writer's lease where NATS is slow: it is renewed all the same."""

import asyncio
import time
from collections.abc import Mapping

import pytest

from runstream.broker.errors import Fenced
from runstream.broker.index import Index
from runstream.broker.jetstream import JetStream
from runstream.broker.lease import Lease
from runstream.broker.messages import StoredMessage
from runstream.schemas import DEFAULT_TENANT
from tests.support.core import Core, chunk
from tests.support.waiting import wait_until

LEASE_SECONDS = 1.0
ANSWER_SECONDS = 0.12
"""What each answer takes: a renewal that begins with a wrong revision needs four of them, and has time for two."""


class Contested(Index):
    """An index in which others renew a lease, too, each time right before a writer does: so often as is said."""

    def __init__(self, core: Core, times: int) -> None:
        super().__init__(core.jetstream)
        self.left = times

    async def renew_lease(self, tenant: str, run_id: str, revision: int, *, seconds: float | None = None) -> int:
        if self.left and revision:
            self.left -= 1
            await super().renew_lease(tenant, run_id, revision)
        return await super().renew_lease(tenant, run_id, revision, seconds=seconds)


async def test_a_lease_that_others_renew_at_the_same_moment_is_taken(core: Core) -> None:
    """Requests of one run that go to several brokers overtake each other again and again: none of them fails."""
    index = Contested(core, 3)
    async with core.publisher(core.address()) as publisher:
        await publisher.publish(chunk(0))
        async with Lease(core.jetstream, index, publisher, tenant=DEFAULT_TENANT, seconds=60) as lease:
            assert index.left == 0
            assert not lease.over.done()


async def test_the_lease_of_a_run_that_is_anothers_is_not_entered(core: Core) -> None:
    """Whoever has written to the log since has the run: a silent writer hears so before it has begun."""
    async with core.publisher(core.address()) as publisher:
        address, last_seq = publisher.address, await publisher.publish(chunk(0))
        async with core.publisher(address, last_seq=last_seq, next_index=1) as other:
            await other.publish(chunk(1))
        with pytest.raises(Fenced, match=address.run_id):
            async with Lease(core.jetstream, core.index, publisher, tenant=DEFAULT_TENANT, seconds=60):
                pass


async def test_a_leader_that_has_nothing_of_a_log_takes_nobodys_lease(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have lost the others, or be new: it is asked again once it was confirmed."""
    ask, times = core.jetstream.last_message, 0
    async with core.publisher(core.address()) as publisher:
        await publisher.publish(chunk(0))

        async def answered_by_another(*where: str) -> StoredMessage | None:
            nonlocal times
            times += where[1] == publisher.address.subject
            return None if times == 1 else await ask(*where)

        monkeypatch.setattr(core.jetstream, "last_message", answered_by_another)
        async with Lease(core.jetstream, core.index, publisher, tenant=DEFAULT_TENANT, seconds=60) as lease:
            assert times > 1
            assert not lease.over.done()


class SlowJetStream(JetStream):
    """JetStream whose writes and reads each take their time."""

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> int:
        await asyncio.sleep(ANSWER_SECONDS)
        return await super().publish(subject, body, headers)

    async def last_message(self, stream: str, subject: str) -> StoredMessage | None:
        await asyncio.sleep(ANSWER_SECONDS)
        return await super().last_message(stream, subject)


async def test_a_renewal_that_takes_too_long_is_of_use_to_the_next(core: Core) -> None:
    """A lease of which an answer was lost is renewed within its time, though no try is fast enough to do it all."""
    slow = SlowJetStream(core.connection, timeout_seconds=2)
    async with core.publisher(core.address()) as publisher:
        run_id = publisher.address.run_id
        await publisher.publish(chunk(0))
        async with Lease(slow, Index(slow), publisher, tenant=DEFAULT_TENANT, seconds=LEASE_SECONDS) as lease:
            renewed = await core.index.restore_lease(DEFAULT_TENANT, run_id)
            lost = await core.index.renew_lease(DEFAULT_TENANT, run_id, renewed)
            since = time.monotonic()

            async def is_renewed() -> bool:
                found = await core.index.lease(run_id)
                return found is not None and found.revision > lost

            await wait_until(is_renewed, 4 * LEASE_SECONDS, "the lease is not renewed any more")
            assert time.monotonic() - since < LEASE_SECONDS
            assert not lease.over.done()
    await slow.close()
