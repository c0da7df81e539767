"""What the TCP proxies of tests have in common: bytes are passed both ways, until either way ends."""

import asyncio
from collections.abc import Coroutine

READ_BYTES = 2**16


async def until_one_ends(*ways: Coroutine[None, None, None]) -> None:
    """Run the ways of a connection until one of them ends, and then none any more, however that one has ended."""
    passing = [asyncio.create_task(way, name="passing") for way in ways]
    try:
        await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in passing:
            each.cancel()
        await asyncio.gather(*passing, return_exceptions=True)
