"""A platform in FastAPI whose answers can be resumed: it writes each one as a run, which any gateway serves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from runstream.broker.errors import BrokerError, Conflict, RunCancelled
from runstream.broker.runs import Run, Runs
from runstream.schemas import AssistantMessage, new_message_id

AGENT_ID = "agent-123e4567-e89b-42d3-8456-426614174000"
NATS_URL = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
GATEWAY_URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8283")
DRAIN_SECONDS = 5.0
"""What answers that go on have to end by themselves when this process is stopped."""

log = logging.getLogger(__name__)
answering: set[asyncio.Task[None]] = set()
"""The answers that go on: a task that nobody holds may be collected."""


class Question(BaseModel):
    """What a client asks. With an `otid` it may be sent again: no second run answers it."""

    text: str
    otid: str | None = Field(default=None, max_length=512)


class Started(BaseModel):
    """Where the answer is. The client follows it there, leaves, and comes back."""

    run_id: str
    stream: str


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Have one `Runs` for the whole process, for as long as it serves."""
    async with Runs(NATS_URL) as runs:
        app.state.runs = runs
        yield
        await runs.drain(DRAIN_SECONDS)


app = FastAPI(lifespan=lifespan)


@app.post("/chat", status_code=202)
async def chat(question: Question) -> Started:
    """Open a run, have it written in the background, and say where it is."""
    opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    try:
        run = app.state.runs.open(agent_id=AGENT_ID, otids=[question.otid] if question.otid else [])
        task = asyncio.create_task(answer(run, question.text, opened))
        answering.add(task)
        task.add_done_callback(answering.discard)
        await asyncio.wait({task, opened}, return_when=asyncio.FIRST_COMPLETED)
        if not opened.done():
            task.result()  # Raises why it could not be opened.
    except Conflict as conflict:
        # The same question again: the run that answers it is there.
        return started(conflict.run_id)
    except BrokerError as error:
        raise HTTPException(503, str(error)) from error
    return started(run.run_id)


async def answer(run: Run, question: str, opened: asyncio.Future[None]) -> None:
    """Write one run, and say in `opened` that it is there. However this block ends, so does the run."""
    message_id = new_message_id()  # Pieces with one id are one message.
    try:
        async with run:
            opened.set_result(None)
            async for word in model(question):
                await run.publish(AssistantMessage(id=message_id, content=word))  # It is stored when this returns.
    except RunCancelled:
        log.info("%s was cancelled", run.run_id)
    except Exception:
        if not opened.done():
            raise
        log.exception("%s has failed", run.run_id)


async def model(question: str) -> AsyncIterator[str]:
    """Stand for the model: say the question back, a word every fifth of a second."""
    for word in ["You", "asked:", *question.split()]:
        await asyncio.sleep(0.2)
        yield f"{word} "


def started(run_id: str) -> Started:
    """Say where a run is."""
    return Started(run_id=run_id, stream=f"{GATEWAY_URL}/v1/runs/{run_id}/stream")
