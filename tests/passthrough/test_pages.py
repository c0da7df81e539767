"""Web pages in front of a platform: what they may read is for runstream's settings to say, not for the platform's."""

from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from runstream.broker.settings import resolved
from runstream.gateway.settings import GatewaySettings
from tests.support.platform import scripted
from tests.support.stack import Stack
from tests.support.upstream import Exchange, Upstream

APP = "https://app.example.com"
STRANGER = "https://evil.example"
PREFLIGHT = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "content-type"}
Front = tuple[Upstream, Stack]


async def generous(exchange: Exchange) -> None:
    """A platform that lets every page read everything, with cookies."""
    headers = {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Methods": "GET",
        "Vary": exchange.asked.headers.get("x-vary", "Accept-Encoding"),
        "Content-Length": "2",
    }
    await exchange.head("200 OK", headers)
    await exchange.raw(b"[]")


async def front_with(nats_url: str, origins: str | None) -> AsyncIterator[Front]:
    chosen = resolved(GatewaySettings, {"cors_origins": origins}).cors_origins
    async with scripted(nats_url, generous, gateway={"cors_origins": chosen}) as made:
        yield made


@pytest_asyncio.fixture(scope="module")
async def listed(nats_url: str) -> AsyncIterator[Front]:
    """In front of the platform, for pages of one origin."""
    async for made in front_with(nats_url, APP):
        yield made


@pytest_asyncio.fixture(scope="module")
async def closed(nats_url: str) -> AsyncIterator[Front]:
    """The same for no page."""
    async for made in front_with(nats_url, None):
        yield made


def cors_of(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control-") or name == "vary"}


async def test_listed_origin(listed: Front) -> None:
    """It may read, and is told what everything else of runstream's tells it."""
    reply = await listed[1].fetch("GET", "/v1/agents/", headers={"Origin": APP})
    assert cors_of(reply.headers) == {
        "access-control-allow-origin": APP,
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "Deprecation, Retry-After, WWW-Authenticate, X-Request-ID, x-should-retry",
        "vary": "Accept-Encoding, Origin",
    }


@pytest.mark.parametrize(("said", "vary"), [("*", "*, Origin"), ("origin", "origin"), ("A, Origin", "A, Origin")])
async def test_vary_is_added_to(listed: Front, said: str, vary: str) -> None:
    """What the platform's answer varies with anyway stays."""
    reply = await listed[1].fetch("GET", "/v1/agents/", headers={"Origin": APP, "X-Vary": said})
    assert reply.headers["vary"] == vary


async def test_others(listed: Front, closed: Front) -> None:
    """The platform's own permissions are not handed on."""
    for front, vary in ((listed, "Accept-Encoding, Origin"), (closed, "Accept-Encoding")):
        reply = await front[1].fetch("GET", "/v1/agents/", headers={"Origin": STRANGER})
        assert cors_of(reply.headers) == {"vary": vary}


async def test_refusals_are_signed(listed: Front) -> None:
    """What is refused here before it is passed on can be read as well."""
    reply = await listed[1].fetch("GET", "/v1/agents/../x", headers={"Origin": APP})
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (400, APP)


@pytest.mark.parametrize("path", ["/v1/agents/agent-1", "/v1/conversations/", "/latest/tools/"])
async def test_preflight(listed: Front, path: str) -> None:
    """It is answered here, for all that the platform may take, and the platform is not asked."""
    upstream, stack = listed
    before = len(upstream.asked)
    reply = await stack.fetch("OPTIONS", path, headers={"Origin": APP, **PREFLIGHT})
    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["access-control-allow-methods"] == "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
    assert len(upstream.asked) == before


async def test_preflight_of_others(listed: Front, closed: Front) -> None:
    """It goes to the platform as the request that it is, and its permission stays there."""
    for front, origin in ((listed, STRANGER), (closed, APP)):
        reply = await front[1].fetch("OPTIONS", "/v1/agents/", headers={"Origin": origin, **PREFLIGHT})
        assert reply.status == 200
        assert "access-control-allow-origin" not in reply.headers
