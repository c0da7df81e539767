"""Two gateways on one NATS: each serves every run, cursors are good at both, and one may go away."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from runstream.schemas import new_agent_id
from tests.support.http import Cut, open_stream
from tests.support.stack import Puppet, Stack, message, stack_running


@pytest_asyncio.fixture(scope="module")
async def stacks(nats_url: str) -> AsyncIterator[tuple[Stack, Stack]]:
    """Two of everything but NATS; a run may be executed by either."""
    puppet = Puppet()
    async with stack_running(nats_url, agent=puppet) as one, stack_running(nats_url, agent=puppet) as two:
        yield one, two


async def test_a_run_is_served_by_both(stacks: tuple[Stack, Stack]) -> None:
    """A run made at one gateway is followed at the other, with the same events and the same cursors."""
    one, two = stacks
    async with one.live(3) as (run_id, creator), two.resume(run_id) as other:
        await other.take(4)
        async with two.resume(run_id, creator.seen[1].seq_id) as hopped:
            one.puppet.say(run_id, 2)
            one.puppet.finish(run_id)
            await asyncio.gather(creator.rest(), other.rest())
            assert await hopped.rest() == creator.seen[2:]
    assert other.seen == creator.seen
    async with two.resume(run_id) as again:
        assert await again.rest() == creator.seen


async def test_the_same_request_at_both_at_once(stacks: tuple[Stack, Stack]) -> None:
    """Of twenty identical requests at two gateways one starts a run, and all are answered by it."""
    body = message("", messages=[{"role": "user", "content": '{"chunks": 5, "interval_ms": 5}', "otid": "identical"}])
    path = f"/v1/agents/{new_agent_id()}/messages/stream"

    async def answer(stack: Stack) -> list[str]:
        async with open_stream(stack.base, path, body) as stream:
            return [event.data for event in await stream.rest()]

    answers = await asyncio.gather(*(answer(stack) for stack in stacks * 10))
    assert len(answers) == 20
    assert all(each == answers[0] for each in answers)


async def test_a_conversation_takes_one_message_at_a_time(stacks: tuple[Stack, Stack]) -> None:
    """Of twenty messages to one conversation one is answered, and the others are told by which run it is busy."""
    conversation_id = await stacks[0].conversation()
    path = f"/v1/conversations/{conversation_id}/messages"
    body = message('{"chunks": 3, "silence_ms": 1000}')
    replies = await asyncio.gather(*(stack.fetch("POST", path, json=body) for stack in stacks * 10))
    statuses = [reply.status for reply in replies]
    assert (statuses.count(200), statuses.count(409)) == (1, 19)
    holders = {reply.json["run_id"] for reply in replies if reply.status == 409}
    assert len(holders) == 1
    answered = next(reply for reply in replies if reply.status == 200)
    assert holders.pop().encode() in answered.body
    async with stacks[1].say_in(conversation_id, {"chunks": 1}) as stream:
        assert (await stream.rest())[-2].message_type == "usage_statistics"


async def test_a_gateway_goes_away(nats_url: str, stacks: tuple[Stack, Stack]) -> None:
    """A gateway that stops cuts its streams; their clients go on at the other, and the run knows nothing of it."""
    _, two = stacks
    async with stack_running(nats_url, agent=two.agent) as leaving:
        base = leaving.base
        # Its broker stays: it may be the one that executes the run.
        async with two.live(3) as (run_id, creator):
            streams = [open_stream(base, f"/v1/runs/{run_id}/stream", {}) for _ in range(3)]
            opened = [await stream.__aenter__() for stream in streams]
            for stream in opened:
                await stream.take(4)
            await leaving.gateway.__aexit__(None, None, None)
            for stream in opened:
                with pytest.raises(Cut):
                    await stream.rest()
                assert stream.seen == creator.seen[:4]
            async with two.resume(run_id, opened[0].cursor) as again:
                two.puppet.say(run_id, 2)
                two.puppet.finish(run_id)
                await creator.rest()
                assert opened[0].seen + await again.rest() == creator.seen
            for closing in streams:
                await closing.__aexit__(None, None, None)
