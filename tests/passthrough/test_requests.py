"""A request as the platform gets it: the same bytes, without what is of one connection, or says who asks."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from runstream.gateway.paths import stays_below
from tests.support.http import Connection
from tests.support.platform import in_front_of, scripted, serving
from tests.support.stack import Stack
from tests.support.upstream import Asked, Exchange, Upstream, upstream_running
from tests.support.waiting import wait_until

Front = tuple[Upstream, Stack]

SECRETS = {
    "Authorization": "Bearer client",
    "Cookie": "session=1",
    "X-BARE-PASSWORD": "password client",
    "user_id": "user-00000000-0000-4000-8000-000000000000",
    "Proxy-Authorization": "Basic Y2xpZW50",
}


async def polite(exchange: Exchange) -> None:
    await exchange.refuse("200 OK", b"[]", Content_Type="application/json")


@pytest_asyncio.fixture(scope="module")
async def front(nats_url: str) -> AsyncIterator[Front]:
    """A platform that answers everything, and a runstream in front of it."""
    async with scripted(nats_url, polite) as made:
        yield made


async def passed(front: Front, method: str, path: str, **options: Any) -> Asked:
    """Send something; returns what the platform got."""
    upstream, stack = front
    before = len(upstream.asked)
    reply = await stack.fetch(method, path, **options)
    assert (reply.status, reply.body) == (200, b"" if method == "HEAD" else b"[]"), reply
    (asked,) = upstream.asked[before:]
    return asked


@pytest.mark.parametrize(
    "target",
    [
        "/v1/agents/",
        "/v1/agents/a%2Fb/%C3%A9%c3%a9/x+y;v=1/'()*,:@!$&=~",
        "/v1/tools/?name=a%20b+c&name=&name=%26&empty&q=%2F..%2F&x=[1]|2",
        "/v1/conversations/conv-1/messages?limit=2",
        "/v1/runs/run-1/steps",
        "/v1/x?next=http://elsewhere/v1/../y",
    ],
)
async def test_path_and_query_go_on_byte_for_byte(front: Front, target: str) -> None:
    """Nothing is decoded, encoded, sorted or joined."""
    assert (await passed(front, "GET", target)).target == target


@pytest.mark.parametrize("prefix", ["/latest/v1", "/latest"])
async def test_aliases_are_the_same_path(front: Front, prefix: str) -> None:
    """Below /latest the platform is asked for what it has below /v1."""
    assert (await passed(front, "GET", f"{prefix}/agents/?limit=1")).target == "/v1/agents/?limit=1"


async def test_absolute_form_is_asked_of_the_platform(front: Front) -> None:
    """A client that names another host in its request line gets no other than the platform."""
    upstream, stack = front
    asked = await passed(front, "GET", "http://169.254.169.254/v1/agents/?limit=1")
    assert (asked.target, asked.headers["host"]) == ("/v1/agents/?limit=1", upstream.url.removeprefix("http://"))
    assert (await stack.fetch("GET", "http://169.254.169.254/latest-meta-data/")).status == 404


@pytest.mark.parametrize("path", ["/letta", "/letta/", "/letta/v1", "/letta/v1/"])
async def test_root_with_and_without_v1(nats_url: str, path: str) -> None:
    """A platform below a path is asked there."""
    async with scripted(nats_url, polite, path) as front:
        assert (await passed(front, "GET", "/v1/agents/?a=1")).target == "/letta/v1/agents/?a=1"


ESCAPES = [
    "/v1/../admin",
    "/v1/agents/../../admin",
    "/v1/%2e%2e/admin",
    "/v1/.%2E/admin",
    "/v1/..%2fadmin",
    "/v1/%2e%2e%5cadmin",
    "/v1/..\\admin",
    "/v1/%252e%252e/admin",
    "/v1/%25252e%25252e%25252fadmin",
    "/v1/..;/admin",
    "/v1/..%3b/admin",
    "/v1/agents/.",
    "/v1/./agents/",
    "/v1//evil.example/agents",
    "/v1/agents//",
    "/latest/../v1/agents/",
    "/latest/v1/../../admin",
]


@pytest.mark.parametrize("path", ESCAPES)
async def test_no_path_leaves_v1(front: Front, path: str) -> None:
    """Dots and empty segments, however they are written, are refused, and nothing is asked."""
    upstream, stack = front
    before = len(upstream.asked)
    reply = await stack.fetch("GET", path)
    detail = "INVALID_ARGUMENT: A path with an empty segment, or one of dots, is not passed on."
    assert (reply.status, reply.json) == (400, {"detail": detail})
    assert len(upstream.asked) == before


@pytest.mark.parametrize(
    "path", ["//v1/agents/", "//evil.example/v1/agents/", "/v1", "/v2/x", "/v1%2Fagents/", "/%76%31/a"]
)
async def test_what_is_not_below_v1_is_not_passed_on(front: Front, path: str) -> None:
    """Nor what is only when it is decoded."""
    upstream, stack = front
    before = len(upstream.asked)
    reply = await stack.fetch("GET", path)
    assert (reply.status, reply.json) == (404, {"detail": "Not Found"})
    assert len(upstream.asked) == before


AGENT = "agent-00000000-0000-4000-8000-000000000000"
CONVERSATION = "conv-00000000-0000-4000-8000-000000000000"
OURS_ONCE_DECODED = [
    ("POST", f"/v1/agents/{AGENT}/messages%2Fstream"),
    ("POST", f"/v1/agents/{AGENT}%2fmessages"),
    ("POST", f"/v1/agents/{AGENT}%252Fmessages%25252Fstream"),
    ("POST", f"/v1/agents/{AGENT}/%2Fmessages%2F%2F/"),
    ("POST", f"/v1/agents/{AGENT}/messages%5Cstream"),
    ("POST", f"/v1/agents/{AGENT}/messages%3Bx=1/stream"),
    ("POST", f"/v1/conversations/{CONVERSATION}/messages%2F"),
    ("POST", f"/latest/conversations%2F{CONVERSATION}/cancel"),
    ("DELETE", "/v1/runs%2Frun-1"),
    ("GET", "/v1/runs%2F"),
    ("GET", "/v1/runs%2Factive"),
    ("HEAD", "/v1/runs%2Frun-1"),
]


@pytest.mark.parametrize(("method", "path"), OURS_ONCE_DECODED)
async def test_no_path_walks_around_runstream(front: Front, method: str, path: str) -> None:
    """What a platform could read as a path that is served here would be a run that nobody records."""
    upstream, stack = front
    before = len(upstream.asked)
    async with Connection.open(stack.base) as connection:
        await connection.send(method, path, headers={"Content-Length": "0"})
        status, headers = await connection.head()
        body = b"" if method == "HEAD" else await connection.reader.readexactly(int(headers["content-length"]))
    detail = "A path that is served here only once it is decoded is not passed on: write it plainly."
    assert (status, detail.encode() in body) == (400, method != "HEAD")
    assert len(upstream.asked) == before


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/folders/name/a%2Fb"),
        ("GET", f"/v1/agents/{AGENT}/core-memory/blocks/a%2Fmessages%2Fstream"),
        ("GET", f"/v1/agents/{AGENT}%2Fmessages"),  # With this method it is the platform's.
        ("PUT", "/v1/runs%2Frun-1"),
        ("POST", f"/v1/Agents/{AGENT}/messages%2Fstream"),
        ("DELETE", f"/v1/conversations%2F{CONVERSATION}"),
        ("GET", "/v1/runs%2Frun-1%2Fsteps"),
    ],
)
async def test_encoded_slashes_of_other_paths_go_on(front: Front, method: str, target: str) -> None:
    """A name with a slash in it is none of runstream's business."""
    assert (await passed(front, method, target)).target == target


def test_dots_within_a_name_are_no_dots() -> None:
    """What only looks like it goes on."""
    assert all(
        map(stays_below, ["/v1/a..b", "/v1/...", "/v1/.well-known", "/v1/%2e%2e%2e", "/v1/a%2Fb", "/v1/%", "/v1/"])
    )


async def test_headers_of_one_connection_stay_there(front: Front) -> None:
    """Those that HTTP names, and those that the client's `Connection` does; all others go on."""
    upstream, stack = front
    lines = (
        b"GET /v1/agents/ HTTP/1.1\r\nHost: client\r\nConnection: close, X-Own, x-forwarded-for\r\nX-Own: 1\r\n"
        b"Keep-Alive: 5\r\nTE: trailers\r\nProxy-Connection: x\r\nUpgrade: h2c\r\nX-Forwarded-For: 1.2.3.4\r\n"
        b"Accept: application/json\r\nX-Many: 1\r\nx-many: 2\r\nX-Utf8: \xc3\xa9\r\nX-Empty:\r\n\r\n"
    )
    async with Connection.open(stack.base) as connection:
        await connection.send_raw(lines)
        assert (await connection.reply()).status == 200
    asked = upstream.asked[-1].headers
    gone = {"x-own", "keep-alive", "te", "proxy-connection", "upgrade", "accept-encoding", "user-agent", "content-type"}
    assert not gone & set(asked)
    assert asked["connection"] == "close"
    assert asked["accept"] == "application/json"
    assert asked["x-many"] == "2"  # The last of both, as the platform's notes have it.
    assert asked["x-utf8"].encode("latin-1") == b"\xc3\xa9"
    assert asked["x-forwarded-for"].endswith("127.0.0.1")


async def test_who_has_asked_whom(front: Front) -> None:
    """The platform is told the client's address, host and scheme; what a proxy in front has said stays."""
    asked = (await passed(front, "GET", "/v1/agents/")).headers
    assert (asked["x-forwarded-for"], asked["x-forwarded-host"]) == ("127.0.0.1", "test")
    assert asked["x-forwarded-proto"] == "http"
    assert asked["via"].startswith("1.1 runstream-")
    said = {"X-Forwarded-For": "10.1.1.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "app", "Via": "1.1 edge"}
    asked = (await passed(front, "GET", "/v1/agents/", headers=said)).headers
    assert asked["x-forwarded-for"] == "10.1.1.1, 127.0.0.1"
    assert (asked["x-forwarded-proto"], asked["x-forwarded-host"]) == ("https", "app")
    assert asked["via"].startswith("1.1 edge, 1.1 runstream-")


async def test_the_platform_is_told_the_requests_id(front: Front) -> None:
    """The client's own, or the one that was made for it: what both log can be put together."""
    assert (await passed(front, "GET", "/v1/agents/", headers={"X-Request-ID": "mine"})).headers[
        "x-request-id"
    ] == "mine"
    async with Connection.open(front[1].base) as connection:
        await connection.send("GET", "/v1/agents/", headers={"X-Request-ID": "no id"})
        answered = await connection.reply()
    assert front[0].asked[-1].headers["x-request-id"] == answered.headers["x-request-id"] != "no id"


@pytest.mark.parametrize("spelling", [str, str.lower, str.upper, lambda name: name.replace("-", "_")])
async def test_nobody_is_told_who_asks(front: Front, spelling: Any) -> None:
    """Without the setting no credential goes on, nor what a platform might take for one."""
    sent = {spelling(name): value for name, value in SECRETS.items()}
    asked = await passed(front, "GET", "/v1/agents/", headers=sent)
    assert "client" not in str(asked.headers)
    assert "session" not in str(asked.headers)
    assert not [name for name in asked.headers if "cookie" in name or "user" in name]


async def test_forwarded_credentials(nats_url: str) -> None:
    """With `forward` those go on that Letta authenticates by, and no cookie, nor another spelling of them."""
    async with scripted(nats_url, polite, auth="forward", headers={"X-Key": "k", "Accept-Language": "de"}) as front:
        sent = {**SECRETS, "X_BARE_PASSWORD": "password other", "user-id": "other", "X-Key": "mine"}
        asked = (await passed(front, "GET", "/v1/agents/", headers=sent)).headers
        assert {name: asked.get(name) for name in ("authorization", "x-bare-password", "user_id", "x-key")} == {
            "authorization": "Bearer client",
            "x-bare-password": "password client",
            "user_id": SECRETS["user_id"],
            "x-key": "k",
        }
        assert not {"cookie", "proxy-authorization", "x_bare_password", "user-id"} & set(asked)
        _, stack = front
        refused = await stack.fetch("GET", "/v1/agents/", headers={"Authorization": "Bearer \xe9"})
        assert (refused.status, refused.detail) == (
            400,
            "INVALID_ARGUMENT: The header Authorization has to be printable ASCII.",
        )


async def test_the_operators_token_is_read_anew(nats_url: str, tmp_path: Path) -> None:
    """A secret that is rotated is used from the next request on; one that is gone is said, and nobody is asked."""
    secret = tmp_path / "token"
    secret.write_text("one\n")
    async with scripted(nats_url, polite, auth=str(secret)) as (upstream, stack):
        for token in ("one", "two"):
            secret.write_text(f"{token}\n")
            asked = await passed((upstream, stack), "GET", "/v1/agents/", headers=SECRETS)
            assert asked.headers["authorization"] == f"Bearer {token}"
            assert not {"cookie", "x-bare-password", "user_id"} & set(asked.headers)
        secret.unlink()
        reply = await stack.fetch("GET", "/v1/agents/")
        assert (reply.status, reply.detail) == (502, "The platform's credential cannot be read.")
        assert len(upstream.asked) == 2


@pytest.mark.parametrize("value", [b"\xe9", b"a\xffb"])
async def test_headers_that_are_no_text_are_refused(front: Front, value: bytes) -> None:
    """Bytes would be lost on the way, and the rest might mean something else."""
    upstream, stack = front
    before = len(upstream.asked)
    async with Connection.open(stack.base) as connection:
        await connection.send_raw(b"GET /v1/agents/ HTTP/1.1\r\nHost: test\r\nX-Odd: " + value + b"\r\n\r\n")
        reply = await connection.reply()
    assert (reply.status, reply.detail) == (400, "INVALID_ARGUMENT: The header X-Odd has to be text in UTF-8.")
    assert len(upstream.asked) == before


SMUGGLED = {
    "both lengths": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "a signed length": b"Content-Length: +5\r\n\r\nhello",
    "chunked twice": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded line": b"X-A: 1\r\n Transfer-Encoding: chunked\r\n\r\n",
    "a bare line feed": b"X-A: 1\nX-B: 2\r\n\r\n",
    "a null": b"X-A: a\x00b\r\n\r\n",
    "a huge header": b"X-A: " + b"a" * 100_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_requests_in_doubt_go_nowhere(front: Front, name: str) -> None:
    """What two servers may read in two ways, or is too large, is refused by the first."""
    upstream, stack = front
    before = len(upstream.asked)
    async with Connection.open(stack.base) as connection:
        await connection.send_raw(b"POST /v1/tools/ HTTP/1.1\r\nHost: test\r\n" + SMUGGLED[name])
        assert (await connection.head())[0] == (431 if name == "a huge header" else 400)
    assert len(upstream.asked) == before


@pytest.mark.parametrize(
    ("method", "framing", "sent", "received"),
    [
        ("GET", {}, b"", {"content-length": None, "transfer-encoding": None}),
        ("DELETE", {}, b"", {"transfer-encoding": None}),
        ("POST", {"Content-Length": "0"}, b"", {"content-length": "0", "transfer-encoding": None}),
        ("POST", {"Content-Length": "5"}, b"hello", {"content-length": "5", "transfer-encoding": None}),
        (
            "PUT",
            {"Transfer-Encoding": "chunked"},
            b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            {"transfer-encoding": "chunked"},
        ),
        ("PATCH", {"Transfer-Encoding": "chunked"}, b"5;x=1\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n", {"trailer": None}),
        ("GET", {"Content-Length": "5"}, b"hello", {"content-length": "5"}),
        ("DELETE", {"Content-Length": "5", "Connection": "content-length"}, b"hello", {"transfer-encoding": "chunked"}),
    ],
)
async def test_framing(
    front: Front, method: str, framing: Mapping[str, str], sent: bytes, received: Mapping[str, str | None]
) -> None:
    """A body's length is said if the client has said it; trailers are left out; what has no body gets none."""
    upstream, stack = front
    async with Connection.open(stack.base) as connection:
        await connection.send(method, "/v1/tools/", headers=framing)
        await connection.send_raw(sent)
        assert (await connection.reply()).status == 200
        await connection.send("GET", "/v1/second/")  # The connection is where it should be.
        assert (await connection.reply()).status == 200
    asked = upstream.asked[-2]
    assert (asked.method, asked.body) == (method, b"hello" if b"l" in sent else b"")
    assert {name: asked.headers.get(name) for name in received} == received
    assert upstream.asked[-1].target == "/v1/second/"


async def test_expectation_is_met_here(front: Front) -> None:
    """A client that waits to be asked for its body is asked, and the platform need not know."""
    upstream, stack = front
    async with Connection.open(stack.base) as connection:
        await connection.send("POST", "/v1/files/", headers={"Expect": "100-continue", "Content-Length": "5"})
        assert (await connection.head())[0] == 100
        await connection.send_raw(b"hello")
        assert (await connection.reply()).status == 200
    assert upstream.asked[-1].body == b"hello"
    assert "expect" not in upstream.asked[-1].headers


async def test_compressed_bodies_stay_as_they_are(front: Front) -> None:
    """A gzip body is not unpacked on the way."""
    packed = gzip.compress(b"hello")
    asked = await passed(front, "POST", "/v1/tools/", body=packed, headers={"Content-Encoding": "gzip"})
    assert (asked.body, asked.headers["content-encoding"]) == (packed, "gzip")
    assert asked.headers["content-length"] == str(len(packed))


@pytest.mark.parametrize("path", ["/v1/agents/", "/v1/conversations/", "/v1/voice/ws"])
async def test_web_sockets_are_refused_clearly(front: Front, path: str) -> None:
    """A web socket is told where it has to go, before anybody is asked."""
    upstream, stack = front
    before = len(upstream.asked)
    headers = {
        "Connection": "keep-alive, Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    reply = await stack.fetch("GET", path, headers=headers)
    detail = "Web sockets are not passed on: connect to the platform at its own address."
    assert (reply.status, reply.json) == (501, {"detail": detail})
    assert len(upstream.asked) == before


@pytest.mark.parametrize("method", ["TRACE", "PROPFIND"])
async def test_methods_that_are_not_passed_on(front: Front, method: str) -> None:
    """What is for proxies, or of other protocols, is refused."""
    upstream, stack = front
    before = len(upstream.asked)
    reply = await stack.fetch(method, "/v1/agents/")
    assert reply.status == 405
    assert reply.headers["allow"] == "DELETE,GET,HEAD,OPTIONS,PATCH,POST,PUT"
    # The target of CONNECT is a host, and no path that is below anything.
    assert (await stack.fetch("CONNECT", "/v1/agents/")).status == 404
    assert (await stack.fetch("CONNECT", "169.254.169.254:80")).status == 404
    assert len(upstream.asked) == before


async def test_a_client_that_stops_sending(nats_url: str) -> None:
    """Half a body is given up, and the platform is not told that it was whole."""
    async with scripted(nats_url, polite, gateway={"upload_silence_seconds": 0.3}) as (upstream, stack):
        async with Connection.open(stack.base) as connection:
            await connection.send("POST", "/v1/files/", headers={"Content-Length": "100"})
            await connection.send_raw(b"half")
            reply = await connection.reply()
            assert (reply.status, reply.detail) == (408, "Nothing has come of the request body for 0.3 s.")
            assert reply.headers["connection"] == "close"
        assert upstream.asked == []


async def test_a_client_that_leaves_in_mid_body(nats_url: str) -> None:
    """The platform's request ends with it, and is not whole."""
    begun, broken, whole = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def reads(request: web.Request) -> web.StreamResponse:
        begun.set()
        try:
            await request.read()
        except (asyncio.CancelledError, ConnectionError, web.RequestPayloadError):
            broken.set()
            raise
        whole.set()
        return web.Response()

    async with serving([web.put("/v1/files/{name}", reads)]) as url, in_front_of(nats_url, url) as stack:
        async with Connection.open(stack.base) as connection:
            await connection.send("PUT", "/v1/files/half", headers={"Transfer-Encoding": "chunked"})
            await connection.send_raw(b"4\r\nhalf\r\n")
            await wait_until(begun.is_set)
        await wait_until(broken.is_set, 1)
    assert not whole.is_set()


async def test_a_body_may_take_its_time(nats_url: str) -> None:
    """As long as enough comes, the time that all of it takes does not matter."""
    slow = {"upload_silence_seconds": 0.5, "upload_bytes_per_second": 5}
    async with scripted(nats_url, polite, gateway=slow) as (upstream, stack):
        async with Connection.open(stack.base) as connection:
            await connection.send("POST", "/v1/files/", headers={"Content-Length": "10"})
            for _ in range(10):
                await connection.send_raw(b"x")
                await asyncio.sleep(0.08)  # the pace of a slow line
            assert (await connection.reply()).status == 200
        assert upstream.asked[0].body == b"x" * 10


async def test_a_body_that_trickles_is_given_up(nats_url: str) -> None:
    """That something comes does not help, if it is too little: whoever sends a byte now and then keeps no place."""
    async with scripted(nats_url, polite, gateway={"upload_silence_seconds": 0.3}) as (upstream, stack):
        async with Connection.open(stack.base) as connection:
            await connection.send("POST", "/v1/files/", headers={"Content-Length": "1000"})
            refused = await connection.trickle(b"x" * 1000)
        assert (refused.status, refused.detail) == (408, "The request body brings less than 256 bytes a second.")
        assert refused.headers["connection"] == "close"
        passthrough = stack.gateway._passthrough
        assert passthrough is not None
        await wait_until(lambda: not passthrough.places.taken)
        assert upstream.asked == []


async def test_a_body_that_is_not_framed(front: Front) -> None:
    """A broken chunk is the client's fault, and ends the request to the platform unfinished."""
    upstream, stack = front
    before = len(upstream.asked)
    for pieces in ([b"5\r\nhello\r\nzz\r\n"], [b"5\r\nhello\r\n", b"zz\r\n"]):
        async with Connection.open(stack.base) as connection, asyncio.timeout(5):
            await connection.send("POST", "/v1/files/", headers={"Transfer-Encoding": "chunked"})
            for piece in pieces:
                await asyncio.sleep(0.05)  # a piece of its own
                await connection.send_raw(piece)
            reply = await connection.reply()
            assert (reply.status, reply.headers["connection"]) == (400, "close")
            assert reply.detail == "INVALID_ARGUMENT: The request body is not framed as its headers say."
    assert len(upstream.asked) == before


async def test_a_gateway_that_is_its_own_platform(nats_url: str) -> None:
    """A request that comes back is refused, instead of going round for ever."""
    async with upstream_running(polite) as upstream, scripted(nats_url, polite) as (_, stack):
        passthrough = stack.gateway._upstream
        assert passthrough is not None
        passthrough.root = stack.base  # type: ignore[misc]
        reply = await stack.fetch("GET", "/v1/agents/")
        assert reply.status == 508
        assert reply.detail == "The platform's address leads back to this gateway: an operator has to correct it."
        assert upstream.asked == []


async def test_no_more_than_may_be(nats_url: str) -> None:
    """Beyond the bound clients are told to come back; one that leaves makes room, and the platform hears of it."""

    async def silent(exchange: Exchange) -> None:
        await exchange.left.wait()

    async with scripted(nats_url, silent, gateway={"max_passed_on": 1}) as (upstream, stack):
        async with Connection.open(stack.base) as first:
            await first.send("GET", "/v1/agents/")
            await wait_until(lambda: upstream.exchanges)
            refused = await stack.fetch("GET", "/v1/agents/")
            assert (refused.status, refused.headers["retry-after"]) == (503, "2")
            assert refused.detail == "This gateway passes on as many requests as it may. Try again."
        await wait_until(upstream.exchanges[0].left.is_set, 1)
        upstream.script = polite
        assert (await stack.fetch("GET", "/v1/agents/")).status == 200


async def test_nothing_changes_for_what_is_served_here(front: Front) -> None:
    """Runs, messages, streams and cancels are runstream's; the platform is not asked."""
    upstream, stack = front
    before = len(upstream.asked)
    run_id, _ = await stack.finished({"chunks": 1, "interval_ms": 0})
    assert (await stack.fetch("GET", f"/v1/runs/{run_id}")).status == 200
    assert (await stack.fetch("GET", f"/v1/runs/{run_id}/")).status == 307
    async with Connection.open(stack.base) as connection:
        for path, status in ((f"/v1/runs/{run_id}", 405), (f"/v1/runs/{run_id}/", 307), ("/v1/health", 307)):
            await connection.send("HEAD", path)
            assert (await connection.head())[0] == status
    assert (await stack.fetch("POST", "/v1/conversations/default/stream", json={})).status == 400
    assert len(upstream.asked) == before
