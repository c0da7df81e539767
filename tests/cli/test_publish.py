"""`runstream publish`: what any program says becomes a run, each line once; its exit code says how it went."""

import asyncio
import contextlib
import json
import os
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from runstream.broker.service import Broker
from runstream.gateway.commands.exits import Exit, Usage
from runstream.gateway.commands.lines import LINE_BYTES, MOST_WAITING, READ_BYTES, Input, chunk_of_line, parsed
from runstream.gateway.commands.publish import _published
from runstream.schemas import new_agent_id
from tests.support.commands import CLEAN, command, done, finished
from tests.support.ingest import content_of
from tests.support.nats import NatsServer, free_ports, nats_server_running
from tests.support.processes import python, running, runstream
from tests.support.proxy import Proxy
from tests.support.services import SOURCE
from tests.support.stack import Puppet, Stack, listener, stack_running, url_of
from tests.support.waiting import wait_until

LINES = b"".join(b"line %d\n" % number for number in range(300))


async def texts_of(stack: Stack, run_id: str) -> list[str]:
    return [chunk["content"] for chunk in await content_of(stack, run_id) if "content" in chunk]


async def status_of(stack: Stack, run_id: str) -> str:
    return (await stack.record(run_id)).status


async def test_lines_of_text_are_a_run(stack: Stack) -> None:
    """Each line is a chunk of one message; the run's id is the first line of stdout, and it has completed."""
    made = await done("publish", "--url", stack.broker_base, said="one\ntwo ä\nthe last, without an end".encode())
    assert made.code == 0
    (run_id,) = made.lines
    chunks = await content_of(stack, run_id)
    assert [chunk["content"] for chunk in chunks] == ["one\n", "two ä\n", "the last, without an end\n"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert await status_of(stack, run_id) == "completed"


async def test_lines_are_stored_as_they_come(stack: Stack) -> None:
    """A program that is slow is followed word by word, and alive while it says nothing."""
    async with command("publish", "--url", stack.broker_base, has_input=True) as process:
        run_id = await process.wait_for_line("^run-", 20)
        async with stack.resume(run_id) as stream:
            await process.write(b"begun\n")
            assert (await stream.until("assistant_message")).json["content"] == "begun\n"
            lease = await stack.index.lease(run_id)
            assert lease is not None

            async def is_renewed() -> bool:
                now = await stack.index.lease(run_id)
                return now is not None and now.revision > lease.revision

            await wait_until(is_renewed, 10, "no sign of life was given")
            await process.write(b"ended\n")
            process.end_input()
            assert (await stream.until("assistant_message")).json["content"] == "ended\n"
        assert (await finished(process)).code == 0


async def test_ndjson_is_stored_as_it_stands(stack: Stack) -> None:
    """Chunks are stored as they were written; the stop reason, usage and pings among them are no chunks."""
    said = [
        {"message_type": "ping"},
        {"message_type": "reasoning_message", "id": "message-1", "reasoning": "hm"},
        {"message_type": "assistant_message", "id": "message-2", "content": "ü"},
        {"message_type": "stop_reason", "stop_reason": "max_steps"},
        {"message_type": "usage_statistics", "total_tokens": 7},
    ]
    body = "\n\n".join(map(json.dumps, said)).encode()
    made = await done("publish", "--ndjson", "--json", "--url", stack.broker_base, said=body)
    assert made.code == 0
    opened, ended = made.json
    assert (ended["run_id"], ended["stop_reason"], ended["chunks"]) == (opened["run_id"], "max_steps", 2)
    stored = await content_of(stack, opened["run_id"])
    assert [chunk["message_type"] for chunk in stored] == ["reasoning_message", "assistant_message"]
    usage = (await stack.record(opened["run_id"])).usage
    assert usage is not None
    assert usage.total_tokens == 7


async def test_an_end_that_there_is_not_is_refused_at_once(stack: Stack) -> None:
    """Before anything is read: there is no run that would have failed for it."""
    before = (await stack.fetch("GET", "/v1/runs/")).json
    made = await done("publish", "--stop-reason", "bogus", "--url", stack.broker_base, said=b"one\n")
    assert (made.code, made.lines) == (Exit.USAGE, [])
    assert "--stop-reason is one of end_turn" in made.errors[-1]
    assert (await stack.fetch("GET", "/v1/runs/")).json == before


async def test_what_tail_says_can_be_published_again(stack: Stack) -> None:
    """A run's lines, published, are a run that says and ends the same: its error included."""
    run_id, _ = await stack.finished({"chunks": 3, "error_after": 2, "interval_ms": 0})
    lines = await done("tail", run_id, "--json", "--url", stack.base)
    made = await done("publish", "--ndjson", "--url", stack.broker_base, said="\n".join(lines.lines).encode())
    assert made.code == 1
    assert await texts_of(stack, made.lines[0]) == await texts_of(stack, run_id)
    assert (await stack.record(made.lines[0])).stop_reason == "llm_api_error"


async def test_a_broken_connection_loses_and_doubles_nothing(stack: Stack) -> None:
    """Answers that are cut off, or never begin, are asked for again: every line is there, once, in order."""
    lines = LINES.splitlines(keepends=True)
    async with (
        Proxy.running([stack.broker_base], cuts=[40]) as proxy,
        command("publish", "--url", proxy.url, has_input=True) as process,
    ):
        run_id = await process.wait_for_line("^run-", 20)
        for number, line in enumerate(lines):
            await process.write(line)
            if number % 30 == 0:
                # What is open is cut with its next answer: so chunks are stored, and their writer is not told so.
                proxy.cuts.append(1 + number % 230)
                await wait_until(lambda: not proxy.cuts, 20)
        process.end_input()
        assert (await finished(process)).code == 0
        assert len(proxy.passages) > 5, "hardly a connection was cut"
    assert await texts_of(stack, run_id) == LINES.decode().splitlines(keepends=True)


async def test_another_broker_takes_over(stack: Stack) -> None:
    """The broker it writes to goes away in the middle, and the next one goes on with the run."""
    async with contextlib.AsyncExitStack() as brokers:
        bound = listener()
        first = await brokers.enter_async_context(contextlib.AsyncExitStack())
        await first.enter_async_context(Broker(stack.settings, agent=None, listener=bound))
        async with (
            Proxy.running([url_of(bound), stack.broker_base]) as proxy,
            command("publish", "--url", proxy.url, has_input=True) as process,
        ):
            run_id = await process.wait_for_line("^run-", 20)
            await process.write(LINES)
            await wait_until(lambda: proxy.passages, 20)
            await first.aclose()
            await process.write(LINES)
            process.end_input()
            assert (await finished(process)).code == 0
    assert await texts_of(stack, run_id) == LINES.decode().splitlines(keepends=True) * 2


async def test_the_same_input_again_is_the_same_run(nats_server: NatsServer) -> None:
    """With an otid, a program that was killed is run again: what is stored is not stored twice."""
    args = ("publish", "--otid", "job 1", "--agent", "agent-123e4567-e89b-42d3-8456-426614174001")
    # A busy machine may need longer for the second program to start than the first one's short lease would last.
    async with stack_running(nats_server.url, agent=Puppet(), broker={"lease_seconds": 60}) as stack:
        async with command(*args, "--url", stack.broker_base, has_input=True) as process:
            run_id = await process.wait_for_line("^run-", 20)
            await process.write(b"one\ntwo\n")
            async with stack.resume(run_id) as stream:
                await stream.until("assistant_message")
                await stream.until("assistant_message")
                process.send_signal(signal.SIGKILL)
                await process.wait()
                again = await done(*args, "--url", stack.broker_base, said=b"one\ntwo\nthree\n")
        assert (again.code, again.lines) == (0, [run_id])
        assert await texts_of(stack, run_id) == ["one\n", "two\n", "three\n"]
        ended = await done(*args, "--url", stack.broker_base, said=b"one\n")
        assert (ended.code, ended.lines) == (1, [])
        assert ended.complaint.startswith(f"runstream: {run_id}: This run has ended (end_turn)")


async def test_interrupted_it_cancels_its_run(stack: Stack) -> None:
    """Ctrl-C: what was taken is stored, the run ends as cancelled, and the exit code is 130."""
    async with command("publish", "--url", stack.broker_base, has_input=True) as process:
        run_id = await process.wait_for_line("^run-", 20)
        await process.write(b"one\n")
        async with stack.resume(run_id) as stream:
            await stream.until("assistant_message")
            process.send_signal(signal.SIGINT)
            assert (await finished(process)).code == 130
            rest = await stream.rest()
    assert [event.json.get("stop_reason") for event in rest[:-1]] == ["cancelled"]
    assert await status_of(stack, run_id) == "cancelled"


async def test_what_had_ended_when_it_was_interrupted_has_completed(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C in the moment in which the last line is stored cancels nothing, and the exit code says so."""

    async def opened(*_: object) -> None:
        """Nothing is asked of anybody."""

    async def completed() -> dict[str, str]:
        work.interrupted.set()
        return {"status": "completed", "stop_reason": "end_turn"}

    writing = SimpleNamespace(open=opened, run_id="run-1", index=3)
    work = SimpleNamespace(check=lambda: None, writing=writing, interrupted=asyncio.Event(), until_done=completed)
    exit_code = await _published(cast("Any", contextlib.nullcontext()), cast("Any", work), (None,) * 3, as_json=False)
    assert exit_code is Exit.FINE
    assert "run-1 is completed (end_turn), 3 chunks" in capsys.readouterr().err


async def test_cancelled_by_somebody_else_it_ends(stack: Stack) -> None:
    """A client cancels the run: the writer is told with its next line, and fails."""
    async with command("publish", "--url", stack.broker_base, has_input=True) as process:
        run_id = await process.wait_for_line("^run-", 20)
        assert (await done("cancel", run_id, "--url", stack.base)).code == 0
        # It may have been told already, by its last sign of life.
        with contextlib.suppress(ConnectionError):
            await process.write(b"one\n")
        ended = await finished(process)
    assert ended.code == 1
    assert any("This run was cancelled" in line for line in ended.errors)


@pytest.mark.parametrize(
    "bad",
    [b"no json", b"[]", b'{"message_type": "assistant_message"', b"{}", pytest.param(b"[" * 200_000, id="nested")],
)
async def test_a_line_that_is_no_chunk_ends_the_run_as_failed(stack: Stack, bad: bytes) -> None:
    """What was before it is stored, which line it was is told, and the run's readers need not wait for a lease."""
    said = b'{"message_type": "assistant_message", "id": "m", "content": "before"}\n' + bad + b"\n"
    made = await done("publish", "--ndjson", "--url", stack.broker_base, said=said)
    assert made.code == 2
    assert any("Line 2 of stdin" in line for line in made.errors)
    assert f"runstream: Stored of {made.lines[0]}: 1 chunk." in made.errors
    assert await texts_of(stack, made.lines[0]) == ["before"]
    assert await status_of(stack, made.lines[0]) == "failed"


async def test_a_chunk_may_have_anything_for_its_type(stack: Stack) -> None:
    """What is no message of Letta's is stored as it stands, and shown as it is."""
    said = b'{"message_type": [], "content": "odd"}\n'
    made = await done("publish", "--ndjson", "--url", stack.broker_base, said=said)
    assert made.code == 0
    assert await texts_of(stack, made.lines[0]) == ["odd"]
    shown = await done("tail", made.lines[0], "--url", stack.base)
    assert shown.code == 0
    assert any('"content": "odd"' in line for line in shown.lines)


async def test_a_line_that_is_too_long_ends_the_run_as_failed(stack: Stack) -> None:
    """What NATS has no room for is told, and what was said before it is stored."""
    made = await done("publish", "--url", stack.broker_base, said=b"before\n" + b"x" * 2 * 2**20 + b"\nafter\n")
    assert made.code == 2
    assert any(line.startswith("runstream: Line 2 of stdin cannot be stored: A chunk has ") for line in made.errors)
    assert await texts_of(stack, made.lines[0]) == ["before\n"]
    assert await status_of(stack, made.lines[0]) == "failed"


async def test_a_run_that_would_be_too_long_is_ended_with_what_it_may_have(tmp_path: Path) -> None:
    """It is as long as a run may be, and says that it failed for that; its readers need not wait for a lease."""
    async with (
        nats_server_running(tmp_path) as server,
        stack_running(server.url, broker={"max_run_messages": 64}) as stack,
    ):
        made = await done("publish", "--url", stack.broker_base, said=LINES)
        assert made.code == 1
        assert (
            "runstream: A run may have no more chunks than this one has: it was ended with what is stored."
            in made.errors
        )
        (run_id,) = made.lines
        texts = await texts_of(stack, run_id)
        assert texts == LINES.decode().splitlines(keepends=True)[: len(texts)]
        stored = len(texts)
        left = f"Not stored: the next {300 - stored}, and whatever followed."
        assert f"runstream: Stored of {run_id}: {stored} chunks. {left}" in made.errors
        assert stored > 50
        async with stack.resume(run_id) as stream:
            events = await stream.rest()
        assert [event.json["error_type"] for event in events if event.message_type == "error_message"] == [
            "run_too_long"
        ]
        assert await status_of(stack, run_id) == "failed"


async def test_a_run_whose_id_nobody_reads_is_cancelled(stack: Stack) -> None:
    """Into a program that is gone: its conversation is not to be busy until a lease is over."""
    whose = ("--otid", "unread", "--agent", new_agent_id())
    publish = shlex.join(runstream("publish", *whose, "--url", stack.broker_base))
    async with running(
        "bash", "-c", f"echo one | {publish} | true; echo ${{PIPESTATUS[1]}}", env={**SOURCE, **CLEAN}
    ) as shell:
        assert await shell.wait(20) == 0
        assert (shell.lines, shell.errors) == (["141"], [])
    run_id = await stack.run_of("unread")
    assert run_id is not None
    assert await status_of(stack, run_id) == "cancelled"


WITHOUT_WAITING = "import os, sys; os.set_blocking(0, False); os.execv(sys.argv[1], sys.argv[1:])"
CLOSED = "import os, sys; os.close(0); os.execv(sys.argv[1], sys.argv[1:])"


async def test_an_input_that_cannot_be_read_is_not_taken_for_its_end(stack: Stack) -> None:
    """A pipe that somebody else has set not to wait fails while it is empty: so has the run."""
    publish = python("-c", WITHOUT_WAITING, *runstream("publish", "--url", stack.broker_base))
    async with running(*publish, env={**SOURCE, **CLEAN}, has_input=True) as process:
        made = await finished(process)
    assert made.code == 2
    assert any("stdin cannot be read: Resource temporarily unavailable." in line for line in made.errors)
    assert await status_of(stack, made.lines[0]) == "failed"


async def test_without_an_input_no_run_is_made(stack: Stack) -> None:
    """A stdin that is closed is told before anything is opened."""
    publish = python("-c", CLOSED, *runstream("publish", "--url", stack.broker_base))
    async with running(*publish, env={**SOURCE, **CLEAN}) as process:
        made = await finished(process)
    assert (made.code, made.lines) == (2, [])
    assert made.complaint == "runstream: stdin cannot be read: it is closed."


async def test_a_line_without_an_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has taken all there was hears of it: such an input is not over."""
    monkeypatch.setattr("runstream.gateway.commands.lines.LONGEST_LINE", 3)
    receiving, sending = os.pipe()
    try:
        os.write(sending, b"one\nmore")
        said = Input(receiving)
        await wait_until(lambda: said._error is not None)
        assert said.take() == b"one"
        assert not said.is_over
        with pytest.raises(Usage, match="more than 3 bytes"):
            said.take()
    finally:
        os.close(sending)
        os.close(receiving)


async def test_what_is_read_ahead_is_bounded_by_what_it_takes(tmp_path: Path) -> None:
    """Lines without a byte of their own are held as well: whoever writes them has to wait, and none is lost."""
    count = 2**19
    (tmp_path / "said").write_bytes(b"\n" * count)
    with (tmp_path / "said").open("rb") as given:
        said = Input(given.fileno())
        await wait_until(lambda: said._bytes >= MOST_WAITING)
        assert len(said._lines) <= MOST_WAITING // LINE_BYTES + 2 * READ_BYTES
        taken = 0
        while not said.is_over:
            await said.news.wait()
            while said.take() is not None:
                taken += 1
    assert taken == count


async def test_a_busy_conversation_is_not_written_to(stack: Stack) -> None:
    """The run that goes on in it is left alone, and the exit code is 1."""
    conversation_id = await stack.conversation()
    record = (await stack.fetch("GET", f"/v1/conversations/{conversation_id}")).json
    async with stack.say_in(conversation_id) as stream:
        (ping,) = await stream.take(1)
        whose = ("--conversation", conversation_id, "--agent", record["agent_id"])
        refused = await done("publish", *whose, "--url", stack.broker_base, said=b"one\n")
        stack.puppet.finish(ping.json["run_id"])
        await stream.rest()
    assert refused.code == 1
    assert "conflict" in refused.complaint
    assert refused.lines == []


async def test_without_a_broker_it_is_exit_code_3() -> None:
    """It goes on trying for as long as its patience lasts."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    made = await done("publish", "--url", url, "--patience", "0", said=b"one\n")
    assert made.code == 3
    assert f"{url} cannot be reached" in made.complaint


async def test_who_takes_no_runs_is_told_from_a_run_that_is_not_there(stack: Stack) -> None:
    """A gateway's URL is the one that every other command takes."""
    made = await done("publish", "--url", stack.base, said=b"one\n")
    assert (made.code, made.lines) == (2, [])
    assert f"{stack.base} takes no runs: --url is a broker's" in made.complaint


async def test_a_file_can_be_its_input(stack: Stack, tmp_path: Path) -> None:
    """Not every input is a pipe."""
    (tmp_path / "said").write_bytes(LINES)
    async with command("publish", "--url", stack.broker_base, stdin=tmp_path / "said") as process:
        made = await finished(process)
    assert made.code == 0
    assert await texts_of(stack, made.lines[0]) == LINES.decode().splitlines(keepends=True)


def test_a_line_is_the_same_bytes_whenever_it_is_made() -> None:
    """So that it may be sent again, by this process or the next, and is no other chunk."""
    assert chunk_of_line(b"a\xff\r", "message-1") == chunk_of_line(b"a\xff\r", "message-1")
    line = b' {"a": 1.50, "b" : "\\u00e4"} '
    assert parsed(line, 1).chunk == line.strip()


async def test_an_otid_alone_names_no_run() -> None:
    """Each call would be a new agent's, and could never go on with what the one before began."""
    refused = await done("publish", "--otid", "x", said=b"x")
    assert (refused.code, refused.lines) == (2, [])
    assert refused.complaint.startswith("runstream: --otid needs --agent or --conversation")


async def test_a_run_whose_id_has_no_room_is_cancelled(stack: Stack) -> None:
    """As one whose id nobody reads; and it is one line that says so."""
    whose = ("--otid", "no room", "--agent", new_agent_id())
    publish = shlex.join(runstream("publish", *whose, "--url", stack.broker_base))
    async with running("bash", "-c", f"echo one | {publish} > /dev/full", env={**SOURCE, **CLEAN}) as shell:
        assert await shell.wait(20) == 1
        assert shell.errors == ["runstream: What there was to write could not be written: No space left on device."]
    run_id = await stack.run_of("no room")
    assert run_id is not None
    assert await status_of(stack, run_id) == "cancelled"


async def test_a_closed_stdout_is_nobody_who_listens(stack: Stack) -> None:
    """As with /dev/null: everything is stored."""
    whose = ("--otid", "closed", "--agent", new_agent_id())
    publish = shlex.join(runstream("publish", *whose, "--url", stack.broker_base))
    async with running("bash", "-c", f"echo one | {publish} >&-", env={**SOURCE, **CLEAN}) as shell:
        assert await shell.wait(20) == 0
    run_id = await stack.run_of("closed")
    assert run_id is not None
    assert await status_of(stack, run_id) == "completed"


async def test_what_a_broker_refuses_is_said_in_its_words(stack: Stack) -> None:
    """What is wrong, and with what."""
    whose = ("--otid", "x" * 5000, "--agent", new_agent_id())
    refused = await done("publish", *whose, "--url", stack.broker_base, said=b"x")
    assert refused.code == 2
    assert refused.complaint.startswith("runstream: otids: ")
