"""A toy agent platform, as somebody wrote it who has never heard of runstream: a question in, tokens out."""

import asyncio
import json
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

app = FastAPI()
asked: list[str] = []
seconds = float(os.environ.get("TOY_SECONDS_PER_TOKEN", "0.05"))


@app.post("/chat")
async def chat(request: Request) -> StreamingResponse:
    """Answer with one word of the question at a time."""
    question = (await request.json())["input"]
    asked.append(question)

    async def tokens() -> AsyncIterator[str]:
        for number, word in enumerate(question.split()):
            yield f"data: {json.dumps({'token': word, 'number': number})}\n\n"
            await asyncio.sleep(seconds)
        yield "data: [DONE]\n\n"

    return StreamingResponse(tokens(), media_type="text/event-stream")


@app.get("/asked")
async def questions() -> dict[str, int]:
    """How many questions there were."""
    return {"questions": len(asked)}
