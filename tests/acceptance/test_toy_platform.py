"""A platform that knows nothing of runstream becomes resumable with one flag."""

import contextlib
import os
import re
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

from runstream.schemas import new_agent_id
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


def as_the_readme_has_it() -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.split(r"^## In front of your platform$", readme, flags=re.MULTILINE)[1]
    shown = re.search(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    assert shown is not None
    return shown[1]


def somewhere_else(directory: Path, platform: str) -> dict[str, str]:
    """An environment in which the README's fixed ports are free ones, and `runstream` is the source as it lies."""
    port, broker_port = free_ports(2)
    (directory / ".curlrc").write_text(f'connect-to = "localhost:8283:127.0.0.1:{port}"\n')
    command = directory / "runstream"
    start = shlex.join(runstream())
    command.write_text(f'#!/bin/sh\nexec {start} $(echo "$@" | sed "s,http://localhost:8000,{platform},")\n')
    command.chmod(0o700)
    ports = {"RUNSTREAM_PORT": str(port), "RUNSTREAM_BROKER_PORT": str(broker_port)}
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    return {**SOURCE, **ports, "CURL_HOME": str(directory), "PATH": path}


async def test_the_readme_shows_it_in_five_lines(tmp_path: Path) -> None:
    """Five lines of shell, run as they stand: an answer is left in its middle, and is there from its beginning."""
    block = as_the_readme_has_it()
    assert len(block.splitlines()) <= 5
    async with toy_platform(seconds_per_token=1.0) as base:
        env = somewhere_else(tmp_path, base)
        # A shell that waits for what it has put into the background, as a terminal's does, so that it ends with it.
        async with running("sh", "-c", f"{block}wait", env=env, cwd=tmp_path) as shell:
            await shell.wait_for_line(r"^data: \[DONE\]", 40)
            said = re.findall(r'"token":"([^"]+)"', "\n".join(shell.lines))
        assert (await fetch(base, "GET", "/asked")).json == {"questions": 1}
    before = re.findall(r'"token":"([^"]+)"', (tmp_path / "first").read_text())
    whole = ["What", "is", "a", "stream?"]
    assert 0 < len(before) < len(whole)
    assert said == before + whole
