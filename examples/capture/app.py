"""A platform in FastAPI that knows nothing of runstream: a question in, tokens out as Server-Sent Events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

app = FastAPI()


class Question(BaseModel):
    """What a client asks. Fields that this platform does not know are passed over."""

    input: str


@app.post("/chat")
async def chat(question: Question) -> StreamingResponse:
    """Answer while the connection lives: whoever loses it has lost the answer."""
    return StreamingResponse(answer(question.input), media_type="text/event-stream")


async def answer(question: str) -> AsyncIterator[str]:
    """Stand for the model: say the question back, a word every fifth of a second."""
    for word in ["You", "asked:", *question.split()]:
        await asyncio.sleep(0.2)
        yield f"data: {json.dumps({'token': f'{word} '})}\n\n"
    yield "data: [DONE]\n\n"
