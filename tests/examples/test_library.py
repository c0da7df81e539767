"""examples/library: a platform in FastAPI that writes its runs itself."""

import re
import signal
from pathlib import Path

from tests.support.documents import Desk, blocks_below, desk_in, making
from tests.support.http import events_of, fetch, open_stream

START_SECONDS = 90.0
"""Two programs import for seconds of their own, one after the other."""
QUESTION = "Will this answer survive a tunnel that is longer than a second?"


def said_in(text: str) -> str:
    """What the agent said, event by event."""
    return "".join(re.findall(r'"content":"([^"]*)"', text))


async def typed(desk: Desk, start: str, ask: str, resume: str) -> list[str]:
    """Start an example, ask it, leave and resume, as its page says; returns what the shell has shown."""
    async with making(start, desk) as example:
        await example.wait_for_line("^Ctrl-C", START_SECONDS)
        async with desk.typing(f"{ask}{resume}") as shell:
            assert await shell.wait(30) == 0, shell.report()
    assert shell.lines.count("data: [DONE]") == 1
    return shell.lines


async def asked(desk: Desk, text: str, **more: str) -> dict[str, str]:
    """What the platform answers a question with."""
    reply = await fetch(desk.base(8000), "POST", "/chat", json={"text": text, **more})
    assert reply.status == 202, reply
    answer: dict[str, str] = reply.json
    return answer


async def test_it_does_what_its_page_says(tmp_path: Path) -> None:
    """One command starts it; an answer is left, and the rest of it is there: each word once."""
    lines = await typed(desk_in(tmp_path), *blocks_below("examples/library/README.md", "Library mode", "sh"))
    assert said_in("\n".join(lines)) == f"You asked: {QUESTION} "
    assert len(said_in((tmp_path / "first").read_text(encoding="utf-8"))) < len(f"You asked: {QUESTION} ")


async def test_a_question_that_is_sent_again(tmp_path: Path) -> None:
    """With an otid it is answered by the run that answered first; without one by another."""
    (start, *_) = blocks_below("examples/library/README.md", "Library mode", "sh")
    desk = desk_in(tmp_path)
    async with making(start, desk) as example:
        await example.wait_for_line("^Ctrl-C", START_SECONDS)
        first, again, other = [
            await asked(desk, "Is this twice?", otid="one"),
            await asked(desk, "Is this twice?", otid="one"),
            await asked(desk, "Is this twice?"),
        ]
        assert first == again
        assert first["stream"] == f"{desk.base()}/v1/runs/{first['run_id']}/stream"
        assert other["run_id"] != first["run_id"]


async def test_ctrl_c_lets_an_answer_end(tmp_path: Path) -> None:
    """Stopped in the middle of an answer it lets that end; started again, all of the answer is there."""
    (start, *_) = blocks_below("examples/library/README.md", "Library mode", "sh")
    desk = desk_in(tmp_path)
    async with making(start, desk) as example:
        await example.wait_for_line("^Ctrl-C", START_SECONDS)
        run_id = (await asked(desk, QUESTION))["run_id"]
        async with open_stream(desk.base(), f"/v1/runs/{run_id}/stream") as stream:
            await stream.take(2)
        example.interrupt_group()
        # make tells of the signal that it was ended by.
        assert await example.wait(30) in {0, -signal.SIGINT}, example.report()
        assert "Traceback" not in "\n".join(example.errors)
    async with making(start, desk) as example:
        await example.wait_for_line("^Ctrl-C", START_SECONDS)
        events = await events_of(desk.base(), f"/v1/runs/{run_id}/stream")
    assert "".join(event.json.get("content", "") for event in events[:-1]) == f"You asked: {QUESTION} "
    assert {"message_type": "stop_reason", "stop_reason": "end_turn"} in [event.json for event in events[-3:-1]]
