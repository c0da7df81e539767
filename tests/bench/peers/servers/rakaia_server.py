"""rakaia-streams as its README starts it, in memory, behind uvicorn. Says `ready <url>`."""

import socket

import uvicorn
import uvloop
from rakaia import create_app


async def main() -> None:
    """Serve until killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"ready http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(create_app(), http="httptools", log_level="warning", access_log=False)
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    uvloop.run(main())
