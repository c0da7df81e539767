"""Refusals, in the reference's words: every case of its error matrix that has an endpoint here."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from runstream.schemas import new_agent_id
from tests.support.captures import matrix, normalised_object
from tests.support.http import NO_BODY, Reply, open_stream
from tests.support.stack import Stack

MATRIX = matrix()
PROTOCOL = (Path(__file__).parents[2] / "PROTOCOL.md").read_text(encoding="utf-8")

UNKNOWN = "123e4567-e89b-42d3-8456-426614174000"
"""The reference's ids that nobody has."""

# What stands in the paths and bodies below for what each test makes for itself: a conversation, an agent, its run.
CONV, AGENT, RUN = "{conv}", "{agent}", "{run}"
# The same in what the reference said.
THEIRS = {
    "conv-35cc592d-ec39-4242-8611-55d3bc27944f": CONV,
    "agent-17400f32-fed1-44d6-87ea-f6bb01c400f4": AGENT,
    "run-b5da2599-1666-4f4d-97e2-017e07cb1e14": RUN,
}


class Case(NamedTuple):
    """The request that the matrix shows the answer to."""

    method: str
    path: str
    json: Any = NO_BODY
    body: bytes | None = None
    headers: dict[str, str] = {}  # noqa: RUF012  # never changed
    after_a_run: bool = False
    """Whether the agent has had one, which is over."""


def stream(path: str, json: Any = NO_BODY, **raw: Any) -> Case:
    return Case("POST", f"/v1/conversations/{path}/stream", json, **raw)


def create(agent_id: str, json: Any = NO_BODY) -> Case:
    return Case("POST", f"/v1/agents/{agent_id}/messages/stream", json)


def cancel(path: str, **options: Any) -> Case:
    return Case("POST", f"/v1/{path}/cancel", **options)


JSON = {"Content-Type": "application/json"}

CASES = {
    "GET conv bad id": Case("GET", "/v1/conversations/abc"),
    "GET conv 'default'": Case("GET", "/v1/conversations/default"),
    "GET conv agent id": Case("GET", f"/v1/conversations/{AGENT}"),
    "GET conv uppercase": Case("GET", f"/v1/conversations/CONV-{UNKNOWN.upper()}"),
    "GET conv non-v4 uuid": Case("GET", "/v1/conversations/conv-123e4567-e89b-12d3-a456-426614174000"),
    "GET conv missing": Case("GET", f"/v1/conversations/conv-{UNKNOWN}"),
    "stream bad id": stream("abc", {}),
    "stream long id": stream("a" * 60, {}),
    "stream missing conv": stream(f"conv-{UNKNOWN}", {}),
    "stream conv no active": stream(CONV, {}),
    "stream conv no body no ct": stream(CONV),
    "stream default no agent": stream("default", {}),
    "stream default agent none active": stream("default", {"agent_id": AGENT}, after_a_run=True),
    "stream default unknown agent": stream("default", {"agent_id": f"agent-{UNKNOWN}"}),
    "stream default bad agent": stream("default", {"agent_id": "zzz"}),
    "stream agent-id path": stream(AGENT, {}),
    "stream run_id bad": stream(CONV, {"run_id": "zzz"}),
    "stream run_id missing": stream(CONV, {"run_id": f"run-{UNKNOWN}"}),
    "stream run_id empty string": stream(CONV, {"run_id": ""}),
    "stream otid missing": stream(CONV, {"otid": "nope"}),
    "stream starting_after null": stream(CONV, {"starting_after": None}),
    "stream starting_after str": stream(CONV, {"starting_after": "abc"}),
    "stream starting_after '3'": stream(CONV, {"starting_after": "3"}),
    "stream starting_after 1.5": stream(CONV, {"starting_after": 1.5}),
    "stream unknown field": stream(CONV, {"zzz": 1}),
    "stream body array": stream(CONV, []),
    "stream body null": stream(CONV, None),
    "stream bad json": stream(CONV, body=b"{bad", headers=JSON),
    "stream no content-type": stream(CONV, body=b"{}"),
    "stream form ct": stream(CONV, body=b"{}", headers={"Content-Type": "application/x-www-form-urlencoded"}),
    "stream GET": Case("GET", f"/v1/conversations/{CONV}/stream"),
    "stream trailing slash": Case("POST", f"/v1/conversations/{CONV}/stream/", {}),
    "run get bad": Case("GET", "/v1/runs/zzz"),
    "run get missing": Case("GET", f"/v1/runs/run-{UNKNOWN}"),
    "run stream missing": Case("POST", f"/v1/runs/run-{UNKNOWN}/stream", {}),
    "run stream bad": Case("POST", "/v1/runs/zzz/stream", {}),
    "runs list": Case("GET", f"/v1/runs/?agent_id={AGENT}", after_a_run=True),
    "runs list no slash": Case("GET", "/v1/runs"),
    "runs list status bad": Case("GET", "/v1/runs/?statuses=zzz"),
    "runs list limit 0": Case("GET", "/v1/runs/?limit=0"),
    "runs list stop_reason bad": Case("GET", "/v1/runs/?stop_reason=zzz"),
    "create bad agent id": create("zzz", {"input": "x"}),
    "create missing agent": create(AGENT, {"input": '{"chunks": 1}', "background": True}),
    "create empty body obj": create(AGENT, {}),
    "create no body": create(AGENT),
    "create both": create(AGENT, {"input": "x", "messages": [{"role": "user", "content": "x", "type": "message"}]}),
    "create bad role": create(AGENT, {"messages": [{"role": "tool", "content": "x", "type": "message"}]}),
    "create empty messages": create(AGENT, {"messages": []}),
    "conv cancel none": cancel(f"conversations/{CONV}"),
    "conv cancel missing": cancel(f"conversations/conv-{UNKNOWN}"),
    "conv cancel default+agent": Case("POST", f"/v1/conversations/default/cancel?agent_id={AGENT}", after_a_run=True),
    "conv cancel default": cancel("conversations/default"),
    "agent cancel after done (redis key stale)": cancel(f"agents/{AGENT}/messages", after_a_run=True),
    "agent cancel unknown agent": cancel(f"agents/agent-{UNKNOWN}/messages"),
    "user_id header bad": Case("GET", f"/v1/conversations/{CONV}", headers={"user_id": "foo"}),
    "user_id header unknown": Case("GET", f"/v1/conversations/{CONV}", headers={"user_id": f"user-{UNKNOWN}"}),
    "conv messages empty list": Case("POST", f"/v1/conversations/{CONV}/messages", {"messages": []}),
    "conv messages missing conv": Case(
        "POST", f"/v1/conversations/conv-{UNKNOWN}/messages", {"messages": [{"role": "user", "content": "x"}]}
    ),
}

# What is answered in other words on purpose, by the row of PROTOCOL.md's table of differences that says so.
OTHER_WORDS = {
    "GET conv missing": "404 texts",
    "stream run_id missing": "404 texts",
    "run get missing": "404 texts",
    "run stream missing": "404 texts",
    "create bad role": "422 texts",
    "conv cancel missing": "404 texts",
    "conv cancel default": "404 texts",
    "conv messages missing conv": "404 texts",
}
# What is answered otherwise on purpose, by its row, too. Each has a test of its own below.
OTHERWISE = {
    "create missing agent": "agents",
    "create empty messages": "`messages: []` to an agent",
    "user_id header unknown": "conversations",
}


async def ask(stack: Stack, case: Case) -> tuple[Reply, dict[str, str]]:
    """The answer, and what this test has put in the place of CONV, AGENT and RUN."""
    own = {CONV: await stack.conversation(), AGENT: new_agent_id()}
    if case.after_a_run:
        async with stack.create({"chunks": 1}, agent_id=own[AGENT], background=False) as run:
            own[RUN] = (await run.rest())[0].json["run_id"]

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            for name, mine in own.items():
                value = value.replace(name, mine)
            return value
        return {key: filled(inner) for key, inner in value.items()} if isinstance(value, dict) else value

    path, body = filled(case.path), filled(case.json)
    return await stack.fetch(case.method, path, json=body, body=case.body, headers=case.headers), own


def said_by_the_reference(name: str, own: dict[str, str]) -> str:
    """The body that the reference sent, with this test's ids in the place of its own."""
    body = MATRIX[name].body
    for theirs, mine in THEIRS.items():
        body = body.replace(theirs, own.get(mine, theirs))
    return body


def test_every_case_of_the_matrix_is_asked() -> None:
    """There is a request for each case of the file, and what is excepted is a case of it, once."""
    assert list(CASES) == list(MATRIX)
    excepted = [*OTHER_WORDS, *OTHERWISE]
    assert sorted(excepted) == sorted(set(excepted) & set(MATRIX))


def test_every_difference_is_documented() -> None:
    """Whoever compares the two servers finds in PROTOCOL.md what is not the same."""
    rows = re.findall(r"^\| (.+?) \|", PROTOCOL.partition("# Differences from the reference")[2], flags=re.MULTILINE)
    assert {*OTHER_WORDS.values(), *OTHERWISE.values()} <= set(rows)


@pytest.mark.parametrize("name", [name for name in MATRIX if name not in {*OTHER_WORDS, *OTHERWISE, "runs list"}])
async def test_answer_is_the_references(stack: Stack, name: str) -> None:
    """Status, type and body are the reference's, to the byte."""
    reply, own = await ask(stack, CASES[name])
    assert (reply.status, reply.body.decode()) == (MATRIX[name].status, said_by_the_reference(name, own))
    assert reply.headers.get("content-type", "") == MATRIX[name].content_type


@pytest.mark.parametrize("name", OTHER_WORDS)
async def test_answer_begins_as_the_references(stack: Stack, name: str) -> None:
    """Where the reference's body goes on with its internals, status and beginning are the same."""
    reply, _ = await ask(stack, CASES[name])
    assert (reply.status, list(reply.json)) == (MATRIX[name].status, list(MATRIX[name].json))
    theirs = MATRIX[name].json["detail"]
    beginning = theirs[: theirs.index("['" if reply.status == 404 else "'function-after")]
    assert len(beginning) > len("Run not found")
    assert reply.detail.startswith(beginning)
    assert "actor" not in reply.detail


async def test_list_of_runs(stack: Stack) -> None:
    """A list is an array of runs, whose keys and forms are the reference's."""
    name = "runs list"
    reply, _ = await ask(stack, CASES[name])
    assert reply.status == MATRIX[name].status
    (ours,), (theirs,) = reply.json, json.loads(MATRIX[name].body)
    assert list(ours) == list(theirs)
    measured = dict.fromkeys(("ttft_ns", "total_duration_ns"))
    assert normalised_object({**ours, **measured}) == normalised_object({**theirs, **measured})


async def test_well_formed_user_id_is_ignored(stack: Stack) -> None:
    """A well-formed `user_id` of nobody changes nothing; a conversation has the hosted service's keys, too."""
    name = "user_id header unknown"
    reply, own = await ask(stack, CASES[name])
    assert reply.json == (await stack.fetch("GET", f"/v1/conversations/{own[CONV]}")).json
    theirs = {**MATRIX[name].json, "in_context_message_ids": []}
    assert reply.status == MATRIX[name].status
    assert list(reply.json)[: len(theirs)] == list(theirs)
    ours = {key: reply.json[key] for key in theirs}
    assert normalised_object(ours) == normalised_object(theirs)


async def test_every_well_formed_agent_exists(stack: Stack) -> None:
    """Without a platform behind it, runstream answers for any agent, where the reference says 404."""
    reply, _ = await ask(stack, CASES["create missing agent"])
    assert reply.status == 200
    assert reply.body.endswith(b"data: [DONE]\n\n")


async def test_empty_messages_to_an_agent(stack: Stack) -> None:
    """An empty list of messages is refused as the conversations endpoint refuses it, not with a stream."""
    reply, _ = await ask(stack, CASES["create empty messages"])
    assert (reply.status, reply.body.decode()) == (422, MATRIX["conv messages empty list"].body)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/conversations/{conv}/stream", "POST"),
        ("PUT", "/v1/conversations/{conv}/stream", "POST"),
        ("GET", "/v1/agents/{agent}/messages/stream", "POST"),
        ("DELETE", "/v1/conversations/{conv}/messages", "POST"),
        ("POST", "/v1/conversations/{conv}", "GET"),
        ("POST", "/v1/runs/run-" + UNKNOWN, "GET"),
        ("PATCH", "/v1/conversations/", "POST"),
    ],
)
async def test_other_methods_are_refused(stack: Stack, method: str, path: str, allowed: str) -> None:
    """A path that is there answers another method with 405, in JSON, and says which it takes."""
    reply, _ = await ask(stack, Case(method, path))
    assert (reply.status, reply.json) == (405, {"detail": "Method Not Allowed"})
    assert reply.headers["content-type"] == "application/json"
    assert allowed in reply.headers["allow"].split(",")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/conversations/{conv}/stream/"),
        ("POST", "/v1/conversations/{conv}/messages/"),
        ("POST", "/v1/agents/{agent}/messages/stream/"),
        ("POST", "/v1/runs/run-" + UNKNOWN + "/stream/"),
        ("GET", "/v1/runs/run-" + UNKNOWN + "/"),
        ("GET", "/v1/conversations/{conv}/"),
        ("POST", "/v1/conversations"),
    ],
)
async def test_slash_too_many_or_too_few(stack: Stack, method: str, path: str) -> None:
    """The path with or without its last slash is redirected to the one that is there, its query kept."""
    reply, _ = await ask(stack, Case(method, f"{path}?agent_id=x%20y"))
    assert (reply.status, reply.body) == (307, b"")
    location = reply.headers["location"]
    assert location.endswith("?agent_id=x%20y")
    there = location.removesuffix("?agent_id=x%20y")
    assert there.endswith("/") != path.endswith("/")
    assert there.strip("/").split("/")[:2] == path.strip("/").split("/")[:2]


@pytest.mark.parametrize("path", ["/zzz", "/v1", "/v1/zzz", "/v1/runs/x/y/z", "/v2/runs/x", "/v1/agents/{agent}"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_unknown_path(stack: Stack, method: str, path: str) -> None:
    """A path that nobody knows is a 404 in JSON."""
    reply, _ = await ask(stack, Case(method, path))
    assert (reply.status, reply.json) == (404, {"detail": "Not Found"})
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("body", "query", "status"),
    [
        ({}, "", 422),
        ({}, "?agent_id=zzz", 400),
        ({"agent_id": "zzz"}, "", 400),
        ([], "?agent_id=agent-" + UNKNOWN, 422),
    ],
)
async def test_conversation_that_cannot_be_made(stack: Stack, body: Any, query: str, status: int) -> None:
    """A conversation needs a well-formed agent, in the query or in the body."""
    reply = await stack.fetch("POST", f"/v1/conversations/{query}", json=body)
    assert reply.status == status
    assert reply.detail


@pytest.mark.parametrize("query_has_it", [True, False])
async def test_conversation_is_made_and_read_again(stack: Stack, query_has_it: bool) -> None:
    """What a conversation is made with comes back, fields that runstream has no use for included."""
    agent_id = new_agent_id()
    body: dict[str, Any] = {"summary": "süß", "model": "m", "hidden": True}
    if not query_has_it:
        body["agent_id"] = agent_id
    query = f"?agent_id={agent_id}" if query_has_it else ""
    made = await stack.fetch("POST", f"/v1/conversations/{query}", json=body)
    assert made.status == 200
    assert {**made.json, **body, "agent_id": agent_id} == made.json
    got = await stack.fetch("GET", f"/v1/conversations/{made.json['id']}")
    assert (got.status, got.json) == (200, made.json)


async def test_foreground_run_cannot_be_resumed(stack: Stack) -> None:
    """A run of the foreground has no cursors: by run id, by otid or by conversation it is refused at once."""
    conversation_id = await stack.conversation()
    messages = [{"role": "user", "content": "puppet", "otid": "foreground"}]
    async with stack.say_in(conversation_id, messages=messages, background=False) as creator:
        run_id = (await creator.take(1))[0].json["run_id"]
        replies = [
            await stack.fetch("POST", f"/v1/runs/{run_id}/stream", json={}),
            await stack.fetch("POST", f"/v1/conversations/{conversation_id}/stream", json={"run_id": run_id}),
            await stack.fetch("POST", f"/v1/conversations/{conversation_id}/stream", json={"otid": "foreground"}),
            await stack.fetch("POST", f"/v1/conversations/{conversation_id}/stream", json={}),
        ]
        stack.puppet.finish(run_id)
        await creator.rest()
    for reply in replies:
        assert reply.status == 400
        detail = "INVALID_ARGUMENT: Run was not created in background mode, so it cannot be retrieved."
        assert reply.json == {"detail": detail}


async def test_what_names_a_run_first_wins(stack: Stack) -> None:
    """A resume takes the run id, else the otid, else what is active; the conversation in the path is not asked."""
    first = [{"role": "user", "content": "hello", "otid": "precedence"}]
    conversation_id, other_id = await stack.conversation(), await stack.conversation()
    async with stack.say_in(conversation_id, messages=first) as creator:
        by_otid = await creator.rest()
    by_run_id, expected = await stack.finished({"chunks": 2})
    path = f"/v1/conversations/{other_id}/stream"
    for body, events in (
        ({"run_id": by_run_id, "otid": "precedence"}, expected),
        ({"run_id": "", "otid": "precedence"}, by_otid),
    ):
        async with open_stream(stack.base, path, body) as resumed:
            assert await resumed.rest() == events


async def test_active_run_of_an_agent(stack: Stack) -> None:
    """`default` with an agent, and the agent's id in the path, both mean the agent's newest run."""
    agent_id = new_agent_id()
    async with stack.create(agent_id=agent_id) as creator:
        (ping,) = await creator.take(1)
        for path, body in (("default", {"agent_id": agent_id}), (agent_id, {"agent_id": new_agent_id()})):
            async with open_stream(stack.base, f"/v1/conversations/{path}/stream", body) as resumed:
                assert await resumed.take(1) == [ping]
        stack.puppet.finish(ping.json["run_id"])
        await creator.rest()


async def test_same_request_again(stack: Stack) -> None:
    """The same otids once more are the same run, from its beginning, during it and after it."""
    conversation_id = await stack.conversation()
    messages = [{"role": "user", "content": "puppet", "otid": "once"}]
    async with stack.say_in(conversation_id, messages=messages) as creator:
        (ping,) = await creator.take(1)
        run_id = ping.json["run_id"]
        async with stack.say_in(conversation_id, messages=messages) as again:
            assert await again.take(1) == [ping]
            stack.puppet.say(run_id, 2)
            stack.puppet.finish(run_id)
            rest = await creator.rest()
            assert await again.rest() == rest
    async with stack.say_in(conversation_id, messages=messages) as later:
        assert await later.rest() == [ping, *rest]


async def test_otid_of_another_request(stack: Stack) -> None:
    """A request that shares an otid with another one, and is not the same, is refused with that one's run."""
    agent_id = new_agent_id()
    one = [{"role": "user", "content": "x", "otid": "shared"}]
    async with stack.create("", agent_id=agent_id, messages=one) as creator:
        run_id = (await creator.rest())[0].json["run_id"]
    two = [*one, {"role": "user", "content": "y", "otid": "own"}]
    refused = await stack.fetch("POST", f"/v1/agents/{agent_id}/messages/stream", json={"messages": two})
    assert refused.status == 409
    assert refused.headers["x-should-retry"] == "false"
    assert (refused.json["run_id"], refused.json["otid"]) == (run_id, "shared")
