"""A request that costs its sender next to nothing keeps nobody else waiting, and is not answered at length."""

import ast
import gzip
import json
import re
from typing import Any

import pytest

from runstream.schemas import new_agent_id
from tests.support.stack import Stack
from tests.support.turns import in_short_turns

PACKED = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
PATIENCE_SECONDS = 0.4
"""CPU of one turn: ten times what it should have, and a tenth of what it had."""
MOST_TOLD = 20_000


def many(what: Any, count: int) -> bytes:
    """A list of the same thing as JSON."""
    return b"[" + b",".join([json.dumps(what).encode()] * count) + b"]"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"messages":%b}' % many({}, 300_000), 413),
        (b'{"messages":%b}' % many({}, 40_000), 422),
        (b'{"messages":[{"role":"user","content":%b}]}' % many({}, 40_000), 422),
        (b'{"messages":%b}' % many({"approvals": [{}] * 40}, 900), 422),
        (b'{"messages":[{"approvals":%b}]}' % many({}, 40_000), 422),
        (b'{"messages":[{"tool_returns":%b}]}' % many({}, 40_000), 422),
        (b'{"input":"x","client_tools":%b}' % many({}, 40_000), 422),
        (b'{"input":"x","client_skills":%b}' % many({}, 40_000), 422),
        (b'{"input":"x","include_return_message_types":%b}' % many("", 40_000), 422),
        (b'{"input":{"a":%b}}' % many("x", 40_000), 422),
        (b'{"max_steps":"%b"}' % (b"x" * 1_000_000), 422),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "plain"])
async def test_a_body_that_is_wrong_in_very_many_ways(
    stack: Stack, body: bytes, status: int, *, is_packed: bool
) -> None:
    """It is refused for the first of them, in few words, while others have their turn."""
    path = f"/v1/agents/{new_agent_id()}/messages/stream"
    sent, headers = (gzip.compress(body), PACKED) if is_packed else (body, {"Content-Type": "application/json"})
    reply = await in_short_turns(PATIENCE_SECONDS, lambda: stack.fetch("POST", path, body=sent, headers=headers))
    assert reply.status in ({413, status} if is_packed else {status})
    assert len(reply.body) < MOST_TOLD


async def test_what_is_left_out_of_a_refusal_is_marked(stack: Stack) -> None:
    """It is still the list that Python prints; what is short is told as it was sent."""
    path = f"/v1/agents/{new_agent_id()}/messages/stream"
    asked = {"messages": [{"role": "user", "content": {"n": number, "x": ["a" * 3000]}} for number in range(100)]}
    told = ast.literal_eval((await stack.fetch("POST", path, json=asked)).detail)
    assert len(told) == 13
    (shortened,) = told[0]["input"].pop("x")
    assert told[0]["input"] == {"n": 0}
    assert re.fullmatch(r"a{900,1000}… \(3000 characters\)", shortened)
    assert told[-1] == {
        "type": "too_many_errors",
        "loc": ("body",),
        "msg": "188 more errors are not shown",
        "input": None,
    }
    listed = ast.literal_eval((await stack.fetch("POST", path, json={"input": {"x": [0] * 2000}})).detail)
    assert listed[0]["input"]["x"][-1].startswith("… (")
    assert listed[0]["input"]["x"][-1].endswith(" more)")
    said = {"a": [1, None, {"b": "c"}]}
    short = ast.literal_eval((await stack.fetch("POST", path, json={"input": said})).detail)
    assert short[0]["input"] == said
