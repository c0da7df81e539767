"""What the guides, and the pages beside them, have their readers type."""

import contextlib
import re
from pathlib import Path
from urllib.parse import urlsplit

from runstream.broker.agents.demo import DEFAULT_TEXT
from runstream.schemas import new_agent_id
from tests.support.documents import Desk, blocks_below, desk_in
from tests.support.http import DONE, Event, events_of, fetch, open_stream
from tests.support.platform import ToyLetta
from tests.support.processes import RunningProcess, python, running
from tests.support.stack import Stack
from tests.support.waiting import wait_until

START_SECONDS = 60.0
"""A command that serves imports for a second of its own, and a machine may have other things to do."""


def answer(events: list[Event]) -> str:
    """What the agent said in a whole stream."""
    assert events[-1] == DONE
    return "".join(event.json["content"] for event in events[:-1] if event.message_type == "assistant_message")


def events_in(shell: RunningProcess) -> list[Event]:
    """The events that a shell has shown."""
    return [Event(None, line.removeprefix("data: ")) for line in shell.lines if line.startswith("data: ")]


async def is_ready(desk: Desk, of: int = 8283) -> None:
    """Wait until what listens there can serve."""

    async def ready() -> bool:
        with contextlib.suppress(OSError, EOFError):
            return (await fetch(desk.base(of), "GET", "/readyz")).status == 200
        return False

    await wait_until(ready, START_SECONDS, "it is not ready")


async def test_a_process_of_ones_own(tmp_path: Path) -> None:
    """Two steps: `runstream up` with a port for NATS, and a program that writes a run, which the gateway serves."""
    (up,) = blocks_below("docs/guides/library.md", "The whole program", "sh")
    (program,) = blocks_below("docs/guides/library.md", "The whole program", "python")
    desk = desk_in(tmp_path)
    async with desk.typing(up) as serving:
        await serving.wait_for_line("^ready ", START_SECONDS)
        async with running(*python("-c", desk.here(program)), env=desk.env) as process:
            run_id = (await process.wait_for_line("^run-", START_SECONDS)).strip()
            assert await process.wait(START_SECONDS) == 0, process.report()
        assert answer(await events_of(desk.base(), f"/v1/runs/{run_id}/stream")) == "What is said is stored first. "


async def test_a_gateway_in_front_of_a_letta_platform(desk: Desk) -> None:
    """The gateway has the platform's answers for what it does not serve, and every run can be resumed."""
    (command,) = blocks_below("docs/guides/capture.md", "A Letta-compatible platform", "sh")
    toy = ToyLetta()
    async with toy.running() as url:
        # A port of its own: the stack has a gateway already.
        there = {"letta:8283": urlsplit(url).netloc, "localhost:8283": f"127.0.0.1:{desk.port(8300)}"}
        own = desk_in(desk.directory, {**desk.addresses, **there})
        async with own.typing(command) as gateway:
            await gateway.wait_for_line("^ready ", START_SECONDS)
            assert [each["id"] for each in (await fetch(own.base(), "GET", "/v1/agents/")).json] == [toy.agent_id]
            async with open_stream(
                own.base(), f"/v1/agents/{new_agent_id()}/messages/stream", {"input": '{"chunks": 1}'}
            ) as stream:
                assert (await stream.rest())[0].seq_id, "it was not asked for in the background"


async def test_an_agent_of_ones_own(tmp_path: Path) -> None:
    """A file with an async generator, and one command: it answers, word by word."""
    (program,) = blocks_below("docs/guides/capture.md", "An agent of your own", "python")
    (up,) = blocks_below("docs/guides/capture.md", "An agent of your own", "sh")
    (tmp_path / "echo.py").write_text(program, encoding="utf-8")
    desk = desk_in(tmp_path)
    async with desk.typing(up) as serving:
        await serving.wait_for_line("^ready ", START_SECONDS)
        path = f"/v1/agents/{new_agent_id()}/messages/stream"
        assert answer(await events_of(desk.base(), path, {"input": "say this back"})) == "say this back "


async def test_beside_a_letta_server_that_is_there(tmp_path: Path) -> None:
    """On another port clients see its agents, and streams that can be resumed; on its own port nothing has changed."""
    (up,) = blocks_below("docs/guides/from-letta.md", "Try it first", "sh")
    toy = ToyLetta()
    async with toy.running() as url:
        desk = desk_in(tmp_path, {"localhost:8283": urlsplit(url).netloc})
        async with desk.typing(up) as serving:
            await serving.wait_for_line("^ready ", START_SECONDS)
            base = desk.base(8300)
            assert [each["id"] for each in (await fetch(base, "GET", "/v1/agents/")).json] == [toy.agent_id]
            events = await events_of(base, f"/v1/conversations/{toy.conversation()}/messages", {"input": "hello"})
            assert answer(events) == "one two "
            assert all(event.seq_id for event in events[:3])


async def test_through_a_proxy(desk: Desk) -> None:
    """The run that shows whether a proxy holds anything back is a run, and comes to its end."""
    (curl,) = blocks_below("docs/guides/proxies.md", "Is it right?", "sh")
    async with desk.typing(curl) as shell:
        await shell.wait_for_line("assistant_message", 10)
        assert "data: [DONE]" not in shell.lines, "all of it came at once"
        assert await shell.wait(20) == 0
    assert len(answer(events_in(shell)).split()) == 10


async def test_lines_of_any_program(desk: Desk) -> None:
    """What a program writes is a run, line by line, whose id is the first line of the output."""
    (command,) = blocks_below("docs/guides/ingest.md", "From a shell", "sh")
    (of_cli,) = blocks_below("docs/cli.md", "`runstream publish`", "sh")
    env = {"RUNSTREAM_INGEST_URL": desk.base(8284)}
    for typed, expected in ((command, r"step one\nstep two\nstep three\n"), (of_cli, r".*\d\d:\d\d.*\n")):
        async with desk.typing(typed, env) as shell:
            run_id = await shell.wait_for_line("^run-", START_SECONDS)
            assert await shell.wait(START_SECONDS) == 0, shell.report()
        events = await events_of(desk.base(), f"/v1/runs/{run_id.strip()}/stream")
        assert re.fullmatch(expected, answer(events)), events


async def test_a_deployment_is_measured(desk: Desk) -> None:
    """By the page's command, with what was delivered and what was lost: nothing."""
    (typed,) = blocks_below("docs/cli.md", "`runstream bench`", "sh")
    env = {"RUNSTREAM_URL": desk.base(), "RUNSTREAM_INGEST_URL": desk.base(8284)}
    async with desk.typing(typed, env) as shell:
        await shell.wait_for_line("^0 chunks lost, 0 chunks out of place", START_SECONDS)
        assert await shell.wait(START_SECONDS) == 0, shell.report()
    (delivered,) = (line for line in shell.lines if line.startswith("delivered"))
    assert f"{5 * 20 * 2 * 20:,} times" in delivered


async def test_the_demo_agents_knobs(stack: Stack, desk: Desk) -> None:
    """The page's command has what it asks for: a reasoning message, and so many words."""
    assert stack.base
    (curl,) = blocks_below("docs/demo-agent.md", "The demo agent", "sh")
    async with desk.typing(curl) as shell:
        assert await shell.wait(20) == 0, shell.report()
    events = events_in(shell)
    assert events[1].message_type == "reasoning_message"
    words = DEFAULT_TEXT.split()
    assert answer(events).split() == [words[number % len(words)] for number in range(20)]
