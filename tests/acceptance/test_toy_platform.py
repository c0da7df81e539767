"""A platform that knows nothing of runstream becomes resumable with one flag."""

import contextlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

from runstream.schemas import new_agent_id
from tests.support.documents import blocks_below, desk_in
from tests.support.http import DONE, Event, events_of, fetch, open_stream
from tests.support.nats import free_ports
from tests.support.processes import python, running, runstream
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
SOURCE = {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "schemas", "broker", "gateway"))}
WORDS = [f"word{number}" for number in range(30)]


@contextlib.asynccontextmanager
async def toy_platform(*, seconds_per_token: float = 0.05) -> AsyncIterator[str]:
    (port,) = free_ports(1)
    base = f"http://127.0.0.1:{port}"
    argv = python("-m", "uvicorn", "tests.acceptance.toy_platform:app", "--port", str(port), "--log-level", "warning")
    async with running(*argv, env={**SOURCE, "TOY_SECONDS_PER_TOKEN": str(seconds_per_token)}):

        async def answers() -> bool:
            with contextlib.suppress(OSError, EOFError):
                return (await fetch(base, "GET", "/asked")).status == 200
            return False

        await wait_until(answers, 20)
        yield base


def numbers(events: list[Event]) -> list[int]:
    return [event.json["number"] for event in events if not event.is_done and "number" in event.json]


async def test_a_platform_becomes_resumable_with_one_flag(tmp_path: Path) -> None:
    """A client that hangs up in mid-answer comes back with its cursor; the platform was asked once, and not changed."""
    async with toy_platform() as base, contextlib.AsyncExitStack() as stack:
        argv = runstream("up", "--port", "0", "--broker-port", "0", "--data-dir", tmp_path, "--agent", f"{base}/chat")
        process = await stack.enter_async_context(running(*argv, env=SOURCE))
        url = (await process.wait_for_line("^ready ", 30)).split()[1]
        path = f"/v1/agents/{new_agent_id()}/messages/stream"
        async with open_stream(url, path, {"input": " ".join(WORDS), "background": True}) as stream:
            seen = await stream.take(8)
        run_id = seen[0].json["run_id"]
        assert numbers(seen) == list(range(7))
        # What the platform said goes out as it said it; the cursor is all that is added.
        assert {**seen[1].json, "seq_id": None} == {"token": "word0", "number": 0, "seq_id": None}
        rest = await events_of(url, f"/v1/runs/{run_id}/stream", {"starting_after": seen[-1].seq_id})
        assert numbers(rest) == list(range(7, 30))
        assert rest[-3].json == {"message_type": "stop_reason", "stop_reason": "end_turn"}
        assert rest[-1] == DONE
        assert await events_of(url, f"/v1/runs/{run_id}/stream") == [*seen, *rest]
        assert (await fetch(base, "GET", "/asked")).json == {"questions": 1}


async def test_the_guide_shows_it_in_five_lines(tmp_path: Path) -> None:
    """Five lines of shell, run as they stand: an answer is left in its middle, and is there from its beginning."""
    (block,) = blocks_below("docs/guides/capture.md", "Five lines", "sh")
    assert len(block.splitlines()) <= 5
    async with toy_platform(seconds_per_token=1.0) as base:
        desk = desk_in(tmp_path, {"localhost:8000": urlsplit(base).netloc})
        async with desk.typing(block) as shell:
            await shell.wait_for_line(r"^data: \[DONE\]", 40)
            said = re.findall(r'"token":"([^"]+)"', "\n".join(shell.lines))
        assert (await fetch(base, "GET", "/asked")).json == {"questions": 1}
    before = re.findall(r'"token":"([^"]+)"', (tmp_path / "first").read_text())
    whole = ["What", "is", "a", "stream?"]
    assert 0 < len(before) < len(whole)
    assert said == before + whole
