"""`runstream runs` and `runstream cancel`: what there is, for people and for programs, and its end."""

from pathlib import Path

import pytest

from runstream.broker.auth.settings import AuthSettings
from runstream.broker.auth.static import new_key
from runstream.gateway.commands import runs
from runstream.gateway.commands.client import Client
from runstream.schemas import new_run_id
from tests.support.commands import command, done, finished
from tests.support.nats import NatsServer
from tests.support.stack import Stack, stack_running


async def test_runs_are_listed_for_people_and_for_programs(stack: Stack) -> None:
    """The newest first: a table whose ids are whole, and JSON as the API has it."""
    conversation_id = await stack.conversation()
    made = []
    for _ in range(3):
        async with stack.say_in(conversation_id, {"chunks": 1}) as stream:
            made.append((await stream.rest())[0].json["run_id"])
    where = ("--conversation", conversation_id, "--url", stack.base)
    table = await done("runs", *where)
    assert [line.split()[0] for line in table.lines[1:]] == made[::-1]
    assert all("completed" in line for line in table.lines[1:])
    (listed,) = (await done("runs", *where, "--json")).json
    assert [run["id"] for run in listed] == made[::-1]
    assert listed[0] == (await stack.fetch("GET", f"/v1/runs/{made[-1]}")).json
    (two,) = (await done("runs", *where, "--json", "--limit", "2")).json
    assert [run["id"] for run in two] == made[:0:-1]


async def test_runs_are_filtered(stack: Stack) -> None:
    """By status, which may be several, and by agent; where none fits nothing is on stdout."""
    async with stack.live(1) as (run_id, _):
        record = await stack.record(run_id)
        where = ("--agent", record.agent_id, "--url", stack.base, "--json")
        (live,) = (await done("runs", *where, "--status", "running", "--status", "created")).json
        assert [run["id"] for run in live] == [run_id]
        (failed,) = (await done("runs", *where, "--status", "failed")).json
        assert failed == []
    none = await done("runs", "--agent", record.agent_id, "--url", stack.base, "--status", "failed")
    assert (none.code, none.lines) == (0, [])


@pytest.mark.parametrize("option", ["--agent", "--conversation"])
@pytest.mark.parametrize("command", ["runs", "publish"])
async def test_what_can_be_no_id_is_not_looked_for(command: str, option: str) -> None:
    """It is 2, and said what one looks like: an empty list would say that there is none."""
    refused = await done(command, option, "nonsense", said=b"")
    assert (refused.code, refused.lines) == (2, [])
    assert f"{option} takes a whole id, such as " in refused.complaint


async def test_a_status_that_there_is_not_is_one_line() -> None:
    """It is 2, and said which there are."""
    refused = await done("runs", "--status", "nosuch")
    said = "--status is one of created, running, completed, failed, cancelled, and not 'nosuch'."
    assert (refused.code, refused.lines, refused.errors) == (2, [], [f"runstream: {said}"])


@pytest.mark.parametrize("command", ["runs", "tail", "replay", "cancel", "conformance"])
async def test_a_broker_is_told_from_a_gateway(stack: Stack, command: str) -> None:
    """Nothing is looked for there, and nothing is said to be missing: it is 2, and said which URL is wanted."""
    target = [new_run_id()] if command in {"tail", "replay", "cancel"} else []
    refused = await done(command, *target, "--url", stack.broker_base)
    assert (refused.code, refused.lines) == (2, [])
    assert refused.errors == [
        f"runstream: {stack.broker_base} is a broker, and the gateway's URL is wanted: --url, or RUNSTREAM_URL."
    ]


async def test_more_than_a_page_are_listed(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are turned until there are as many as were asked for."""
    monkeypatch.setattr(runs, "PAGE", 2)
    conversation_id = await stack.conversation()
    for _ in range(5):
        async with stack.say_in(conversation_id, {"chunks": 1}) as stream:
            await stream.rest()
    found = await runs._found(Client(stack.base), [("conversation_id", conversation_id)], 100)
    assert len({run["id"] for run in found}) == 5


async def test_a_run_is_cancelled_by_any_of_its_names(stack: Stack) -> None:
    """By its id, or as the newest of its conversation; it has ended when the command has."""
    async with stack.live(1) as (run_id, _):
        assert (await done("cancel", run_id, "--url", stack.base)).lines == [f"{run_id} is cancelled"]
        assert (await stack.record(run_id)).status == "cancelled"
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id) as stream:
        await stream.take(1)
        (cancelled,) = (await done("cancel", conversation_id, "--json", "--url", stack.base)).json
        assert cancelled["status"] == "cancelled"


async def test_a_run_that_was_cancelled_is_cancelled_again(stack: Stack) -> None:
    """The exit code is 0, as it is what was asked for; that it was so already is said."""
    async with stack.live(1) as (run_id, _):
        assert (await done("cancel", run_id, "--url", stack.base)).code == 0
        again = await done("cancel", run_id, "--url", stack.base)
    assert (again.code, again.lines) == (0, [f"{run_id} was cancelled already"])


async def test_what_has_ended_is_not_cancelled(stack: Stack) -> None:
    """The exit code is 1, and what became of the run is told."""
    run_id, _ = await stack.finished({"chunks": 1})
    late = await done("cancel", run_id, "--url", stack.base)
    assert late.code == 1
    assert late.complaint.endswith(f"{run_id} had ended already: it is completed.")


async def test_keys_are_shown_from_the_environment_or_a_file(nats_server: NatsServer, tmp_path: Path) -> None:
    """Without one, or with a bad one, it is 4 and said what to set; a key for too little is 4, too."""
    key, line = new_key("default", ["runs:read"])
    keys, key_file = tmp_path / "keys", tmp_path / "key"
    keys.write_bytes(line + b"\n")
    key_file.write_text(f"{key}\n")
    async with stack_running(nats_server.url, auth=AuthSettings(auth="static", auth_keys_file=keys)) as stack:
        where = ("--url", stack.base)
        refused = await done("runs", *where)
        assert refused.code == 4
        assert "Set RUNSTREAM_KEY, or --key-file" in refused.complaint
        for args in (("runs", *where), ("tail", new_run_id(), *where), ("publish", "--url", stack.broker_base)):
            unknown = await done(*args, env={"RUNSTREAM_KEY": "rsk_x_y"}, said=b"")
            assert unknown.code == 4
            assert unknown.complaint.startswith("runstream: This is no key. (401) Set RUNSTREAM_KEY")
        assert (await done("runs", *where, env={"RUNSTREAM_KEY": key})).code == 0
        assert (await done("runs", *where, "--key-file", str(key_file))).code == 0
        assert (await done("publish", "--url", stack.broker_base, env={"RUNSTREAM_KEY": key}, said=b"x")).code == 4
        absent = await done("runs", *where, "--key-file", str(keys.with_name("absent")))
        assert absent.code == 2
        assert "cannot be read" in absent.complaint


async def test_colours_are_for_terminals(stack: Stack) -> None:
    """Into a pipe there is none, and no other control character."""
    run_id, _ = await stack.finished({"chunks": 1, "reasoning": True})
    async with command("tail", run_id, "--url", stack.base, env={"NO_COLOR": ""}) as process:
        shown = await finished(process)
    assert not any("\x1b" in line for line in shown.lines)
