"""`runstream tail`: whoever follows a run sees all of it, once, whatever happens to connections and gateways."""

import contextlib
import json
import shlex
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientConnectorSSLError,
    ClientResponseError,
    ServerDisconnectedError,
    web,
)

from runstream.broker.auth.revoking import revoke
from runstream.broker.topology import SEQUENCES_PER_SHARD
from runstream.gateway.commands.client import Client
from runstream.gateway.commands.terminal import counted, harmless
from runstream.gateway.keys import revoked_by
from runstream.schemas import new_agent_id, new_run_id
from tests.support.auth import Client as Caller
from tests.support.auth import KeyFile
from tests.support.commands import CLEAN, command, done, finished
from tests.support.http import Event, open_stream
from tests.support.nats import NatsServer, free_ports
from tests.support.processes import running, runstream
from tests.support.proxy import Proxy, random_cuts
from tests.support.services import SOURCE, service
from tests.support.stack import Stack, listener, message, stack_running, url_of
from tests.support.waiting import wait_until

SLOWLY = {"chunks": 100, "interval_ms": 200}
"""What any broker's agent says, whichever of those at this NATS takes the run."""
KEY: Any = SimpleNamespace(host="127.0.0.1", port=1, ssl=True)


def ssl_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] (_ssl.c:1006)")
    error.reason = reason
    return error


def untrusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    return error


def chunks_of(events: list[Event]) -> list[dict[str, Any]]:
    """What a stream has shown, without its pings."""
    chunks = [event.json for event in events if event.data != "[DONE]"]
    return [chunk for chunk in chunks if chunk["message_type"] != "ping"]


def without_pings(lines: list[Any]) -> list[Any]:
    return [line for line in lines if line["message_type"] != "ping"]


async def test_a_gateway_that_is_killed_and_restarted_is_not_noticed(nats_url: str) -> None:
    """Every chunk is there, once and in order, though the gateway is killed in the middle and started again."""
    (port,) = free_ports(1)
    async with contextlib.AsyncExitStack() as stack:
        broker = await stack.enter_async_context(service("broker", nats_url, "--agent", "demo"))
        async with service("gateway", nats_url, port=port) as gateway:
            await broker.is_ready()
            await gateway.is_ready()
            path = f"/v1/agents/{new_agent_id()}/messages/stream"
            async with open_stream(gateway.base, path, message({"chunks": 80, "interval_ms": 50})) as stream:
                (ping,) = await stream.take(1)
            run_id = ping.json["run_id"]
            tail = await stack.enter_async_context(command("tail", run_id, "--json", "--url", gateway.base))
            await wait_until(lambda: len(tail.lines) > 10, 20)
            await gateway.kill()
        seen = len(tail.lines)
        async with service("gateway", nats_url, port=port) as gateway:
            await gateway.is_ready()
            shown = await finished(tail)
            async with open_stream(gateway.base, f"/v1/runs/{run_id}/stream", {}) as whole:
                expected = chunks_of(await whole.rest())
    assert shown.code == 0
    assert seen < len(shown.lines)
    assert without_pings(shown.json) == expected


async def test_connections_that_break_anywhere_lose_nothing(stack: Stack) -> None:
    """Cut within headers, within an event, after dozens of them: the lines are those of the run."""
    run_id, events = await stack.finished({"chunks": 200, "interval_ms": 0})
    async with Proxy.running([stack.base], cuts=random_cuts(7, 8)) as proxy:
        shown = await done("tail", run_id, "--json", "--url", proxy.url)
        assert not proxy.cuts, "there was no cut"
    assert shown.code == 0
    assert without_pings(shown.json) == chunks_of(events)


async def test_text_is_put_together_and_tools_have_panels(stack: Stack) -> None:
    """The answer is one line of text, reasoning and tools stand apart, and the end says what became of the run."""
    knobs = {"chunks": 4, "interval_ms": 0, "text": "all of it here", "reasoning": True, "tool_call": True}
    run_id, _ = await stack.finished(knobs)
    shown = await done("tail", run_id, "--url", stack.base)
    assert shown.code == 0
    assert "all of it here " in shown.lines
    assert sum("calls look_outside" in line for line in shown.lines) == 1
    assert sum('{"window": "south"}' in line for line in shown.lines) == 1
    assert any("tool returned" in line or "returned" in line for line in shown.lines)
    assert shown.lines[-1].startswith("[end_turn, ")


async def test_after_a_cursor_comes_what_followed_it(stack: Stack) -> None:
    """--after is the last seq_id that was seen."""
    run_id, events = await stack.finished({"chunks": 5, "interval_ms": 0})
    shown = await done("tail", run_id, "--json", "--after", str(events[3].seq_id), "--url", stack.base)
    assert shown.json == chunks_of(events[4:])


async def test_after_a_cursor_of_another_shard_comes_everything(stack: Stack) -> None:
    """Once, and to its end: the gateway says where it begins, and ids below the cursor are as new as others."""
    run_id, events = await stack.finished({"chunks": 5, "interval_ms": 0})
    record = await stack.record(run_id)
    foreign = (record.shard + 5) * SEQUENCES_PER_SHARD + 1
    shown = await done("tail", run_id, "--json", "--after", str(foreign), "--url", stack.base)
    assert (shown.code, without_pings(shown.json)) == (0, chunks_of(events))


async def test_cut_after_a_cursor_of_another_shard_it_says_how_to_come_back(stack: Stack, nats_url: str) -> None:
    """With the last seq_id that was shown, though the one that was given is above it."""
    # Either stack's broker may take the run.
    async with stack_running(nats_url, agent=stack.puppet) as leaving, leaving.live(3) as (run_id, _):
        foreign = ((await leaving.record(run_id)).shard + 5) * SEQUENCES_PER_SHARD + 1
        options = ("--json", "--patience", "0.1", "--url", leaving.base)
        async with command("tail", run_id, "--after", str(foreign), *options) as tail:
            await wait_until(lambda: len(tail.lines) >= 4, 20)
            await leaving.gateway.__aexit__(None, None, None)
            shown = await finished(tail)
    assert shown.code == 3
    words = ["runstream", "tail", run_id, "--after", str(shown.json[-1]["seq_id"]), *options]
    assert shown.complaint.endswith(f"To come back: {shlex.join(words)}")


async def test_a_run_that_failed_is_exit_code_1(stack: Stack) -> None:
    """Its error is the last thing that is shown."""
    run_id, _ = await stack.finished({"chunks": 3, "error_after": 1, "interval_ms": 0})
    shown = await done("tail", run_id, "--url", stack.base)
    assert shown.code == 1
    assert any(line.startswith("llm_error: ") for line in shown.lines)


@pytest.mark.parametrize(("knobs", "code"), [({"error_after": 1}, 1), ({}, 0)])
async def test_what_became_of_a_run_is_said_behind_its_end_as_well(
    stack: Stack, knobs: dict[str, Any], code: int
) -> None:
    """Whoever comes back with the last cursor hears of no failure any more: the run is asked for it."""
    run_id, events = await stack.finished({"chunks": 3, "interval_ms": 0, **knobs})
    last = max(event.seq_id for event in events if event.seq_id is not None)
    shown = await done("tail", run_id, "--json", "--after", str(last + 100), "--url", stack.base)
    assert (shown.code, shown.lines) == (code, [])
    status = "failed" if code else "completed"
    assert shown.complaint.startswith(
        f"runstream: Nothing follows {last + 100}: {run_id} is {status}, and its last seq_id"
    )


async def test_interrupted_it_says_how_to_come_back(stack: Stack, tmp_path: Path) -> None:
    """Ctrl-C leaves the run alone, and names the cursor, and the options that were given; what follows is the rest."""
    key_file = tmp_path / "a key"
    key_file.write_text("rsk_x")
    options = ("--json", "--url", stack.base, "--key-file", str(key_file))
    async with stack.live(3) as (run_id, _), command("tail", run_id, *options) as tail:
        await wait_until(lambda: len(tail.lines) >= 4, 20)
        tail.send_signal(signal.SIGINT)
        shown = await finished(tail)
        assert shown.code == 130
        cursor = shown.json[-1]["seq_id"]
        assert shown.complaint.endswith(shlex.join(["runstream", "tail", run_id, "--after", str(cursor), *options]))
        stack.puppet.say(run_id)
        stack.puppet.finish(run_id)
        rest = await done("tail", *shlex.split(shown.complaint.partition("runstream tail ")[2]))
    assert [line["message_type"] for line in rest.json] == ["assistant_message", "stop_reason", "usage_statistics"]


async def test_a_key_that_stands_no_more_ends_it_with_how_to_come_back(nats_server: NatsServer, tmp_path: Path) -> None:
    """It is 4, and said why the key was refused, and with which cursor the next one goes on."""
    keys = KeyFile(tmp_path / "keys")
    key = keys.add(scopes="runs:read runs:write")
    async with stack_running(nats_server.url, auth=keys.settings) as stack, contextlib.AsyncExitStack() as opened:
        start = Caller(stack.base, key).stream(f"/v1/agents/{new_agent_id()}/messages/stream", message(SLOWLY))
        (ping,) = await (await opened.enter_async_context(start)).take(1)
        run_id = ping.json["run_id"]
        options = ("--json", "--url", stack.base)
        tail = await opened.enter_async_context(command("tail", run_id, *options, env={"RUNSTREAM_KEY": key}))
        await wait_until(lambda: any("assistant_message" in line for line in tail.lines), 20)
        await revoke(stack.jetstream, revoked_by(key).id)
        shown = await finished(tail)
    assert shown.code == 4
    assert "revoked" in shown.complaint
    assert "(401) Set RUNSTREAM_KEY" in shown.complaint
    words = ["runstream", "tail", run_id, "--after", str(without_pings(shown.json)[-1]["seq_id"]), *options]
    assert shown.complaint.endswith(f"To come back: {shlex.join(words)}")


async def test_a_conversation_is_followed_from_run_to_run(stack: Stack) -> None:
    """With --follow the next message's run is shown as well; without it is the newest run that is."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id, {"chunks": 1, "text": "first"}) as stream:
        await stream.rest()
    assert "first " in (await done("tail", conversation_id, "--url", stack.base)).lines
    async with command("tail", conversation_id, "-f", "--url", stack.base) as tail:
        await tail.wait_for_line("first", 20)
        async with stack.say_in(conversation_id, {"chunks": 1, "text": "second"}) as stream:
            await stream.rest()
        await tail.wait_for_line("second", 20)


@pytest.mark.parametrize(
    ("target", "code", "complaint"),
    [
        ("run-123e4567-e89b-42d3-8456-426614174000", 5, "Run not found"),
        ("conv-123e4567-e89b-42d3-8456-426614174000", 5, "has no run yet"),
        ("run-123e4567…", 2, "'run-123e4567…' is not a whole id, such as run-"),
        ("conv-1", 2, "`runstream runs` lists them"),
        ("something", 2, "Name a run (run-…)"),
        (
            "run-123e4567-e89b-42d3-8456-426614174000 --after 99999999999999999999",
            2,
            "--after takes a seq_id, which is",
        ),
    ],
)
async def test_what_is_not_there_is_told(stack: Stack, target: str, code: int, complaint: str) -> None:
    """One line says what is wrong, and the exit code which kind of wrong it is."""
    shown = await done("tail", *target.split(), "--url", stack.base)
    assert shown.code == code
    assert complaint in shown.complaint


async def test_a_cursor_ahead_of_a_run_is_not_said_to_have_expired(stack: Stack) -> None:
    """It is 5, and what can be done about it."""
    async with stack.live(1) as (run_id, _):
        # Far ahead: what else writes into the same stream comes nowhere near it.
        ahead = await stack.newest_sequence(await stack.record(run_id)) + 100_000
        shown = await done("tail", run_id, "--after", str(ahead), "--url", stack.base)
    assert shown.code == 5
    assert shown.complaint.startswith("runstream: This run has no event with that seq_id yet: resume from ")


async def test_a_server_that_is_not_there_is_exit_code_3() -> None:
    """Where it was looked for is said."""
    (port,) = free_ports(1)
    shown = await done("tail", new_run_id(), "--patience", "0", "--url", f"http://127.0.0.1:{port}")
    assert shown.code == 3
    assert f"http://127.0.0.1:{port} cannot be reached" in shown.complaint


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ClientConnectorError(KEY, ConnectionRefusedError(111, "Connect call failed")), "connection refused"),
        (ClientConnectorDNSError(KEY, socket.gaierror(-2, "Name or service not known")), "cannot be resolved"),
        (ClientConnectorSSLError(KEY, ssl_error("WRONG_VERSION_NUMBER")), "TLS failed, wrong version number"),
        (ClientConnectorCertificateError(KEY, untrusted()), "TLS failed, its certificate cannot be trusted"),
        (ClientResponseError(cast("Any", None), (), message="Bad status line"), "speaks no HTTP"),
        (ServerDisconnectedError(), "cannot be reached: Server disconnected. Is it up"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_why_nobody_answers_is_said_in_plain_words(error: Exception, reason: str) -> None:
    """As people say it, and not as a library does."""
    said = str(Client("http://127.0.0.1:1").away(error))
    assert reason in said
    assert "ssl:" not in said


@pytest.mark.parametrize("url", ["ftp://x", "http://", "127.0.0.1", "http://user:secret@x", "http://x:port"])
async def test_what_is_no_url_is_exit_code_2(url: str) -> None:
    """And it is said how to write one."""
    shown = await done("runs", "--url", url)
    assert shown.code == 2
    assert "Write the server's URL as http://host:8283" in shown.complaint


def answering(
    body: bytes, media: str = "text/event-stream", status: int = 200
) -> contextlib.AbstractAsyncContextManager[str]:
    """A server that answers everything with this, and nothing more."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers={"Content-Type": media})

    return served(answer)


@contextlib.asynccontextmanager
async def served(answer: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    """A server that answers everything so; where it is."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    bound = listener()
    await web.SockSite(runner, bound).start()
    try:
        yield url_of(bound)
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("body", "media", "code"),
    [
        (b"retry: 10\n", "text/event-stream", 3),  # a gateway that is full, or has lost NATS
        (b"<html>", "text/html", 1),
        (b"data: no json\n\n", "text/event-stream", 1),
        (b"data: [1]\n\n", "text/event-stream", 1),
    ],
)
async def test_who_only_says_to_come_back_or_is_no_gateway_is_left(body: bytes, media: str, code: int) -> None:
    """Patience has an end, and what is no stream of chunks is told."""
    async with answering(body, media) as url:
        shown = await done("tail", new_run_id(), "--patience", "0.5", "--url", url)
    assert shown.code == code
    assert shown.complaint


async def test_what_keeps_a_stream_from_beginning_is_said() -> None:
    """A stream says only when to come back: the run is asked for, once patience is over, and not a pause later."""

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/stream"):
            return web.Response(body=b"retry: 600000\n", headers={"Content-Type": "text/event-stream"})
        return web.json_response({"detail": "The keys cannot be fetched at the moment. Try again."}, status=503)

    async with served(answer) as url:
        shown = await done("tail", new_run_id(), "--patience", "0.5", "--url", url)
    said = f"{url} does not serve now: The keys cannot be fetched at the moment. Try again. (503)"
    assert (shown.code, shown.errors) == (3, [f"runstream: {said}"])


async def test_what_a_server_refuses_with_is_one_line_and_moves_no_cursor() -> None:
    """Whoever has the URL may be anybody."""
    async with answering(json.dumps({"detail": "no\n\x1b[2Jsuch run"}).encode(), "application/json", 404) as url:
        shown = await done("tail", new_run_id(), "--url", url)
    assert (shown.code, shown.errors) == (5, ["runstream: no �[2Jsuch run (404)"])


async def test_a_reader_that_is_gone_is_no_error(stack: Stack) -> None:
    """Into `head`, it ends without a word once nobody reads."""
    run_id, _ = await stack.finished({"chunks": 3000, "interval_ms": 0, "chunk_bytes": 100})
    tail = shlex.join(runstream("tail", run_id, "--json", "--url", stack.base))
    async with running("bash", "-c", f"{tail} | head -n 1; echo ${{PIPESTATUS[0]}}", env={**SOURCE, **CLEAN}) as shell:
        assert await shell.wait(20) == 0
        assert len(shell.lines) == 2
        assert shell.lines[-1] == "141"
        assert shell.errors == []


@pytest.mark.parametrize(
    "args",
    [
        ("tail", "{run}"),
        ("replay", "{run}", "--speed", "max"),
        ("runs",),
        ("runs", "--json"),
        ("conformance", "--only", "cursors"),
        ("conformance", "--only", "cursors", "--json"),
    ],
    ids=" ".join,
)
async def test_whatever_is_not_read_is_no_error(stack: Stack, args: tuple[str, ...]) -> None:
    """Text and tables as well as JSON, and whatever is written last."""
    run_id, _ = await stack.finished({"chunks": 2, "interval_ms": 0})
    writer = shlex.join(runstream(*(each.format(run=run_id) for each in args), "--url", stack.base))
    async with running("bash", "-c", f"{writer} | true; echo ${{PIPESTATUS[0]}}", env={**SOURCE, **CLEAN}) as shell:
        assert await shell.wait(30) == 0
        assert (shell.lines, shell.errors) == (["141"], [])


def test_what_an_agent_says_moves_no_cursor() -> None:
    """Escape sequences are shown as what they are not: nothing is cleared, and no title is set."""
    assert harmless("a\x1b[2Jb\x9bc\rd\n\te") == "a�[2Jb�c�d\n\te"
    assert json.dumps("ä€") == json.dumps(harmless("ä€"))


@pytest.mark.parametrize("control", [*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))], ids=ascii)
def test_what_an_agent_says_is_shown_in_the_order_in_which_it_is_written(control: str) -> None:
    """What turns text around is shown as what it is not; marks of direction, which languages need, are left."""
    assert harmless(f"rm {control}x") == "rm �x"
    assert harmless("\u200ea\u200f") == "\u200ea\u200f"


@pytest.mark.parametrize(("number", "said"), [(0, "0 chunks"), (1, "1 chunk"), (2, "2 chunks")])
def test_one_thing_is_said_without_a_plural(number: int, said: str) -> None:
    """As people count."""
    assert counted(number, "chunk") == said
