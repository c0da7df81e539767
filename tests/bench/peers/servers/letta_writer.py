"""Letta's writer of Redis streams, in a process of its own, driven by lines of JSON: `{"run", "count", "per_second"}`.

Each line is answered with one, when the last chunk has been handed to the writer. A run's end is told by a count of 0.
"""

import asyncio
import json
import sys
import time

from letta.data_sources.redis_client import get_redis_client
from letta.server.rest_api.redis_stream_manager import RedisSSEStreamWriter

from tests.bench.chunks import due, fresh


async def write(writer: RedisSSEStreamWriter, written: dict[str, int], run: str, count: int, per_second: float) -> None:
    """Write a run's next chunks at that pace; none: end it."""
    if not count:
        await writer.mark_complete(run)
    begun = time.monotonic()
    for number in range(count):
        await asyncio.sleep(due(begun, number, per_second))
        # Letta has the cursor in the chunk, as null, and its reader puts it in.
        body = fresh(written.get(run, 0))[:-1].decode() + ',"seq_id":null}'
        written[run] = written.get(run, 0) + 1
        await writer.write_chunk(run, f"data: {body}\n\n")


async def main() -> None:
    """Do what the lines say until there are no more of them."""
    writer = RedisSSEStreamWriter(await get_redis_client())
    written: dict[str, int] = {}
    await writer.start()
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print("ready", flush=True)
    async for line in lines:
        asked = json.loads(line)
        await write(writer, written, **asked)
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
