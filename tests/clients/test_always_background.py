"""With `--background always` every run can be resumed, whether its client has asked for that or not."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from letta_client import AsyncLetta, omit

from runstream.broker.errors import InvalidSettings
from runstream.broker.settings import resolved
from runstream.gateway.settings import GatewaySettings
from runstream.schemas import new_agent_id
from tests.support.letta import as_json, chunks_of, conversation, whole
from tests.support.stack import Stack, stack_running

# Letta's client calls an agent's own stream deprecated; that it works is what matters here.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning:tests.clients.test_always_background")

QUESTION = '{"chunks": 8, "interval_ms": 5}'


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream with the setting."""
    async with stack_running(nats_url, gateway={"background": "always"}) as running:
        yield running


@pytest.mark.parametrize("background", [None, False])
async def test_a_client_that_did_not_ask_can_come_back(letta: AsyncLetta, background: bool | None) -> None:
    """It leaves in the middle of an answer, comes back with its cursor, and misses nothing."""
    place = await conversation(letta)
    asked = omit if background is None else background
    seen = []
    async for chunk in chunks_of(await letta.conversations.messages.create(place, input=QUESTION, background=asked)):
        seen.append(chunk)
        if len(seen) == 4:
            break
    cursor = seen[-1]["seq_id"]
    rest = [chunk async for chunk in chunks_of(await letta.conversations.messages.stream(place, starting_after=cursor))]
    run_id = seen[0]["run_id"]
    assert [*seen, *rest] == await whole(letta, run_id)
    assert as_json(await letta.runs.retrieve(run_id))["background"] is True


async def test_agents_addressed_directly(letta: AsyncLetta) -> None:
    """The same without a conversation."""
    stream = await letta.agents.messages.stream(new_agent_id(), input=QUESTION)
    seen = [chunk async for chunk in chunks_of(stream)]
    assert seen == await whole(letta, seen[0]["run_id"])


def test_other_values_are_refused() -> None:
    """Nobody gets one that was mistyped."""
    assert GatewaySettings().background == "as-asked"
    with pytest.raises(InvalidSettings, match=r"background: .*as-asked.*always"):
        resolved(GatewaySettings, {"background": "never"})
