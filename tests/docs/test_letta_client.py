"""What the guide for letta-client shows, in both languages: programs with their output, and how to resume."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from letta_client import Letta

from tests.support.documents import Desk, blocks_below
from tests.support.http import Event
from tests.support.letta import as_json
from tests.support.processes import RunningProcess, python, running
from tests.support.proxy import Proxy
from tests.support.stack import Stack
from tests.support.typescript import PROJECT, node

START_SECONDS = 60.0
CUTS = (2000, 3500)
"""After how many bytes of an answer the connection is reset, wherever in an event that is."""


def without_ids(lines: list[str]) -> list[str]:
    """Lines that do not tell which run it was."""
    return [re.sub(r"\d{10,}", "N", line) for line in lines]


@contextlib.asynccontextmanager
async def script(directory: Path, code: str, *arguments: str) -> AsyncIterator[RunningProcess]:
    """A JavaScript module beside Letta's client."""
    if not (directory / "node_modules").exists():
        (directory / "node_modules").symlink_to(PROJECT / "node_modules")
    module = directory / "program.mjs"
    module.write_text(code, encoding="utf-8")
    async with running(node(), module, *arguments, cwd=directory) as process:
        yield process


async def test_the_program_in_python(desk: Desk) -> None:
    """It prints what the guide shows: nothing is missing, and the same."""
    (program,) = blocks_below("docs/guides/letta-client.md", "In Python", "python")
    (output,) = blocks_below("docs/guides/letta-client.md", "In Python", "text")
    async with running(*python("-c", desk.here(program)), env=desk.env) as process:
        assert await process.wait(START_SECONDS) == 0, process.report()
    assert without_ids([line.rstrip() for line in process.lines]) == without_ids(output.splitlines())


async def test_the_program_in_typescript(desk: Desk) -> None:
    """The same of the other one."""
    (program,) = blocks_below("docs/guides/letta-client.md", "In TypeScript", "js")
    (output,) = blocks_below("docs/guides/letta-client.md", "In TypeScript", "text")
    async with script(desk.directory, desk.here(program)) as process:
        assert await process.wait(START_SECONDS) == 0, process.report()
    assert without_ids(process.lines) == without_ids(output.splitlines())


@contextlib.asynccontextmanager
async def a_run_with_cuts(stack: Stack) -> AsyncIterator[tuple[Proxy, str, list[Event]]]:
    """A run that goes on behind a proxy that cuts; at the end of the block its events are all there."""
    async with stack.create({"chunks": 60, "interval_ms": 20}) as creator, Proxy.running([stack.base], CUTS) as proxy:
        events = await creator.take(1)
        yield proxy, str(events[0].json["run_id"]), events
        events += await creator.rest()
        assert not proxy.cuts, "the run was over before it was cut as often as it was to be"


def contents(chunks: list[dict[str, Any]]) -> list[str]:
    """What the agent said, chunk by chunk."""
    return [str(chunk["content"]) for chunk in chunks if chunk["message_type"] == "assistant_message"]


def said(events: list[Event]) -> list[str]:
    """The same of a stream as it was on the wire."""
    return contents([event.json for event in events if not event.is_done])


def followed(base: str, run_id: str) -> list[dict[str, Any]]:
    """All that the guide's `follow` gives, in Python."""
    (code,) = blocks_below("docs/guides/letta-client.md", "Resume by yourself, in Python", "python")
    defined: dict[str, Any] = {}
    exec(code, defined)  # noqa: S102  # which is the point
    with Letta(base_url=base, api_key="none") as client:
        messages: Iterator[Any] = defined["follow"](client, run_id)
        return [as_json(message) for message in messages]


async def test_resuming_in_python(stack: Stack) -> None:
    """A connection that is cut twice gives each message once, in order."""
    async with a_run_with_cuts(stack) as (proxy, run_id, events):
        seen = await asyncio.to_thread(followed, proxy.url, run_id)
    assert contents(seen) == said(events)


FOLLOWED = """\
import Letta from "@letta-ai/letta-client";
import { follow } from "./follow.mjs";
const [baseURL, run] = process.argv.slice(2);
for await (const message of follow(new Letta({ baseURL, apiKey: "none" }), run)) console.log(JSON.stringify(message));
"""


async def test_resuming_in_typescript(stack: Stack, tmp_path: Path) -> None:
    """The same of the other one."""
    (code,) = blocks_below("docs/guides/letta-client.md", "Resume by yourself, in TypeScript", "js")
    (tmp_path / "follow.mjs").write_text(code, encoding="utf-8")
    async with (
        a_run_with_cuts(stack) as (proxy, run_id, events),
        script(tmp_path, FOLLOWED, proxy.url, run_id) as process,
    ):
        assert await process.wait(START_SECONDS) == 0, process.report()
    assert contents([json.loads(line) for line in process.lines]) == said(events)
