"""What admits a client to runstream, and what the platform behind it is told: two things that never meet."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from runstream.schemas import new_agent_id, new_conversation_id
from tests.support.auth import Client, KeyFile
from tests.support.platform import scripted
from tests.support.stack import Stack
from tests.support.upstream import Exchange, Upstream

THEIRS = {"X-BARE-PASSWORD": "password theirs", "user_id": "user-00000000-0000-4000-8000-000000000000"}
AGENT = new_agent_id()
CONVERSATION = new_conversation_id()


async def script(exchange: Exchange) -> None:
    """Know one conversation, and take everything else."""
    body = b"[]"
    if exchange.asked.target == f"/v1/conversations/{CONVERSATION}":
        body = b'{"agent_id":"%b"}' % AGENT.encode()
    await exchange.refuse("200 OK", body, Content_Type="application/json")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys of one file, by what they are for; the file itself is `path`."""
    made = KeyFile(Path(tmp_path_factory.mktemp("keys")) / "keys")
    return {
        "platform": made.add(),
        "user": made.add(scopes="runs:read runs:write runs:cancel"),
        "narrowed": made.add(scopes="admin", agent_id=AGENT),
        "given": made.add("third", scopes="runs:write", conversation_id=CONVERSATION),
        "stranger": made.add("other", scopes="runs:read runs:write"),
        "path": str(made.path),
    }


@pytest_asyncio.fixture(scope="module")
async def front(nats_url: str, keys: dict[str, str]) -> AsyncIterator[tuple[Upstream, Stack]]:
    """A runstream that takes keys, and tells the platform what its clients say of themselves."""
    settings = KeyFile(Path(keys["path"])).settings
    async with scripted(nats_url, script, admission=settings, auth="forward") as made:
        yield made


async def test_what_admits_is_not_passed_on(front: tuple[Upstream, Stack], keys: dict[str, str]) -> None:
    """The platform is told what is for it, and nothing that it could come back with."""
    platform, stack = front
    client = Client(stack.base, keys["platform"])
    before = len(platform.asked)
    assert (await client.fetch("GET", "/v1/tools/", headers=THEIRS)).status == 200
    assert (await client.fetch("PUT", f"/v1/agents/{AGENT}", headers=THEIRS)).status == 200
    asked = platform.asked[before:]
    assert len(asked) == 2
    assert [each.headers.get("x-bare-password") for each in asked] == ["password theirs"] * 2
    assert not [each for each in asked if "authorization" in each.headers or keys["platform"] in str(each)]


@pytest.mark.parametrize(("whose", "status"), [("", 401), ("user", 403), ("narrowed", 403), ("stranger", 403)])
async def test_the_platform_is_for_who_may_speak_to_it(
    front: tuple[Upstream, Stack], keys: dict[str, str], whose: str, status: int
) -> None:
    """It knows of no tenants, and would answer of everything: so nobody else gets as far."""
    platform, stack = front
    before = len(platform.asked)
    client = Client(stack.base, keys.get(whose))
    for method, path in (("GET", "/v1/tools/"), ("DELETE", f"/v1/agents/{AGENT}"), ("GET", "/v1/conversations/")):
        assert (await client.fetch(method, path)).status == status
    assert len(platform.asked) == before


async def test_a_platforms_conversation_comes_by_who_may_bring_it(
    front: tuple[Upstream, Stack], keys: dict[str, str]
) -> None:
    """To others it is not there until it was used in their tenant; and never to another tenant's."""
    _, stack = front
    path = f"/v1/conversations/{CONVERSATION}/messages"

    async def status(whose: str) -> int:
        client = Client(stack.base, keys[whose])
        return (await client.fetch("POST", path, json={"input": "hello", "streaming": False})).status

    asked = ["user", "given", "user", "platform", "user", "stranger"]
    assert [await status(whose) for whose in asked] == [404, 200, 404, 200, 200, 404]
