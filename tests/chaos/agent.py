"""The agent of a chaos run, in the broker's process: it says what its input asks for, and so the same if asked again.

runstream broker --agent tests.chaos.agent:speak
"""

import asyncio
from collections.abc import AsyncGenerator

import msgspec

from runstream.schemas import AssistantMessage, Chunk, RunRequest, StopReason, UsageStatistics, last_user_text
from tests.chaos.content import content_of, padding_of


class Asked(msgspec.Struct, frozen=True):
    """An input: so many chunks of the run `token`, so many seconds apart, padded by at most so many characters."""

    token: str
    count: int
    interval: float = 0.0
    padding: int = 0


async def speak(request: RunRequest) -> AsyncGenerator[Chunk, None]:
    """Say them, and end."""
    asked = msgspec.json.decode(last_user_text(request.body) or "", type=Asked)
    for index in range(asked.count):
        padding = padding_of(asked.token, index, asked.padding)
        yield AssistantMessage(content=content_of(asked.token, index, padding))
        await asyncio.sleep(asked.interval)
    yield StopReason(stop_reason="end_turn")
    yield UsageStatistics(total_tokens=asked.count)
