"""A platform behind uvicorn that writes a run while it serves: `<nats url>`. Says `open <run_id>`, and `left`."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI

from runstream.broker.runs import Runs
from runstream.broker.settings import BrokerSettings
from runstream.schemas import AssistantMessage, new_agent_id
from tests.support.core import SETTINGS


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Have runs while the server lives."""
    url = sys.argv[1]
    async with Runs(url, settings=BrokerSettings(nats_url=url, **SETTINGS)) as runs:
        answering = asyncio.create_task(answer(runs))
        yield
    await asyncio.wait([answering])
    print("left")


async def answer(runs: Runs) -> None:
    """Write a run that does not end by itself."""
    async with runs.open(agent_id=new_agent_id()) as run:
        await run.publish(AssistantMessage(content="word "))
        print("open", run.run_id)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvicorn.run(FastAPI(lifespan=lifespan), port=0, log_level="warning")
