"""A client that posts its next message the moment it sees the last one's end is never told that it is too early."""

import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.support.http import Connection, encoded
from tests.support.stack import Stack, message

ROUNDS = 200
"""Messages that are posted the moment an end is there; one more comes before them all."""


@contextlib.asynccontextmanager
async def hasty(stack: Stack, path: str, body: bytes, marker: bytes) -> AsyncIterator[list[int]]:
    """Post, and post again on a connection that is open already as soon as the marker's last byte is there."""
    statuses: list[int] = []
    head = (
        f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    async with contextlib.AsyncExitStack() as current:
        connection = await current.enter_async_context(Connection.open(stack.base))
        await connection.send_raw(request)
        for _ in range(ROUNDS + 1):
            async with contextlib.AsyncExitStack() as opening:
                following = await opening.enter_async_context(Connection.open(stack.base))
                status, _ = await connection.head()
                statuses.append(status)
                if status != 200:
                    break
                await connection.reader.readuntil(marker)
                await following.send_raw(request)
                # Nothing of the end is read before the next message is on its way.
                await current.aclose()
                current.push_async_exit(opening.pop_all().__aexit__)
            connection = following
        yield statuses


@pytest.mark.parametrize("background", [True, False], ids=["background", "foreground"])
@pytest.mark.parametrize(
    ("knobs", "marker"),
    [
        ({"chunks": 1, "interval_ms": 0}, b"data: [DONE]"),
        ({"chunks": 1, "interval_ms": 0, "error_after": 1}, b"data: [DONE]"),
        ({"chunks": 1, "interval_ms": 0, "error_after": 1}, b"event: error"),
    ],
    ids=["at the end", "at a failure's end", "at an error"],
)
async def test_posting_at_the_end(stack: Stack, knobs: dict[str, int], marker: bytes, background: bool) -> None:
    """Two hundred messages in one conversation, each posted at the end of the answer before it: all are taken."""
    conversation_id = await stack.conversation()
    body = encoded(message(knobs, background=background))
    async with hasty(stack, f"/v1/conversations/{conversation_id}/messages", body, marker) as statuses:
        assert statuses == [200] * (ROUNDS + 1)
