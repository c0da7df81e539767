"""Letta's reader of Redis streams behind uvicorn, as its own route has it: `letta_reader.py`, port 0 of loopback.

`LETTA_REDIS_HOST` and `LETTA_REDIS_PORT` say where Redis is, as they do for Letta. Says `ready <url>`.
"""

import socket

import uvicorn
import uvloop
from fastapi import FastAPI
from letta.data_sources.redis_client import get_redis_client
from letta.server.rest_api.redis_stream_manager import redis_sse_stream_generator
from letta.server.rest_api.streaming_response import StreamingResponseWithStatusCode

app = FastAPI()


@app.get("/runs/{run_id}/stream")
async def follow(run_id: str) -> StreamingResponseWithStatusCode:
    """Follow a run from its beginning, with the batches and the pace of polling that Letta has unless told."""
    stream = redis_sse_stream_generator(await get_redis_client(), run_id)
    return StreamingResponseWithStatusCode(stream, media_type="text/event-stream")


async def main() -> None:
    """Serve until killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"ready http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, http="httptools", log_level="warning", access_log=False)
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    uvloop.run(main())
