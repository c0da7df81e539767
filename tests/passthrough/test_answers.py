"""An answer of the platform's as the client gets it: the same bytes at once, finished only if the platform finished."""

import asyncio
import contextlib
import gzip
import time
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from runstream.gateway.passthrough import here
from runstream.schemas import new_run_id
from tests.support.http import Connection, Cut, Reply
from tests.support.nats import free_ports
from tests.support.platform import in_front_of, scripted
from tests.support.stack import Stack
from tests.support.upstream import CHUNKED, Exchange, Script, Upstream, event
from tests.support.waiting import wait_until

Front = tuple[Upstream, Stack]
JSON = {"Content-Type": "application/json"}


async def polite(exchange: Exchange) -> None:
    await exchange.refuse("200 OK", b"[]", **{"Content-Type": "application/json"})


@pytest_asyncio.fixture(scope="module")
async def shared(nats_url: str) -> AsyncIterator[Front]:
    """A platform whose script each test sets, and a runstream in front of it."""
    async with scripted(nats_url, polite, silence_seconds=1) as made:
        yield made


@pytest.fixture
def front(shared: Front) -> Front:
    """The same, with nothing asked yet."""
    shared[0].exchanges.clear()
    return shared


async def answered(front: Front, raw: bytes, method: str = "GET", path: str = "/v1/agents/") -> Reply:
    """What a client gets of these bytes of the platform's."""

    async def script(exchange: Exchange) -> None:
        await exchange.raw(raw)
        exchange.writer.write_eof()

    front[0].script = script
    async with Connection.open(front[1].base) as connection:
        await connection.send(method, path)
        if method == "HEAD":
            return Reply(*await connection.head(), b"")
        return await connection.reply()


def head(status: str, **headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode()


@pytest.mark.parametrize(
    "status", ["200 OK", "201 Created", "404 Not Found", "409 Conflict", "422 No", "500 Oh", "599"]
)
async def test_status_headers_and_body_are_the_platforms(front: Front, status: str) -> None:
    """What the platform says is said, a refusal as well, and runstream signs it as its own answers."""
    reply = await answered(
        front, head(status, Content_Type="text/x", X_Own="1", ETag='"a"', Content_Length="3") + b"abc"
    )
    assert (reply.status, reply.body) == (int(status[:3]), b"abc")
    assert {name: reply.headers.get(name) for name in ("content-type", "x-own", "etag", "server", "deprecation")} == {
        "content-type": "text/x",
        "x-own": "1",
        "etag": '"a"',
        "server": "runstream",
        "deprecation": None,
    }


async def test_what_is_of_the_platforms_connection_or_address_stays_there(front: Front) -> None:
    """No cookie, no permission for pages, no header of one connection, none that cannot be written comes through."""
    raw = (
        b"HTTP/1.1 200 OK\r\nConnection: close, X-Gone\r\nX-Gone: 1\r\nKeep-Alive: timeout=5\r\nSet-Cookie: a=1\r\n"
        b"Set-Cookie: b=2\r\nAlt-Svc: h3\r\nServer: uvicorn\r\nAccess-Control-Allow-Origin: *\r\n"
        b"Proxy-Authenticate: x\r\nAccess-Control-Allow-Credentials: true\r\n"
        b"X-Latin: \xe9\r\nX-Control: a\x01b\r\nX-Kept: \xc3\xa9\r\n"
        b"WWW-Authenticate: Bearer\r\nContent-Length: 2\r\n\r\n[]"
    )
    headers = (await answered(front, raw)).headers
    ours = {"x-request-id", "x-content-type-options", "content-security-policy"}
    assert set(headers) == {"server", "date", "x-kept", "www-authenticate", "content-length", "content-type", *ours}
    assert headers["x-kept"].encode("latin-1") == b"\xc3\xa9"


@pytest.mark.parametrize(
    ("method", "raw", "expected"),
    [
        ("HEAD", head("200 OK", Content_Length="1000", Content_Type="a/b"), {"content-length": "1000"}),
        (
            "HEAD",
            head("200 OK", **{"Transfer-Encoding": "chunked"}),
            {"content-length": None, "transfer-encoding": None},
        ),
        ("GET", head("204 No Content", X_A="1"), {"content-length": None, "transfer-encoding": None}),
        ("GET", head("304 Not Modified", ETag='"a"'), {"etag": '"a"', "transfer-encoding": None}),
        ("GET", head("304 Not Modified", Content_Length="1000"), {"transfer-encoding": None}),
        ("GET", head("200 OK", Content_Length="0"), {"content-length": "0", "transfer-encoding": None}),
    ],
)
async def test_answers_without_a_body(
    front: Front, method: str, raw: bytes, expected: Mapping[str, str | None]
) -> None:
    """HEAD, 204 and 304 have none, whatever their headers say; the connection is good for the next request."""

    async def script(exchange: Exchange) -> None:
        await exchange.raw(raw)

    front[0].script = script
    async with Connection.open(front[1].base) as connection:
        await connection.send(method, "/v1/agents/")
        status, headers = await connection.head()
        assert status == int(raw.split(b" ")[1])
        assert {name: headers.get(name) for name in expected} == expected
        front[0].script = polite
        await connection.send("GET", "/v1/agents/")
        assert (await connection.reply()).body == b"[]"


async def test_chunks_and_trailers(front: Front) -> None:
    """A chunked answer stays one, and ends; what the platform adds behind it is left out."""
    raw = head("200 OK", Transfer_Encoding="chunked", Trailer="X-T") + b"3;a=1\r\nabc\r\n1\r\nd\r\n0\r\nX-T: 1\r\n\r\n"
    reply = await answered(front, raw)
    assert (reply.body, reply.headers["transfer-encoding"]) == (b"abcd", "chunked")
    assert "trailer" not in reply.headers


async def test_compressed_answers_stay_as_they_are(front: Front) -> None:
    """gzip is not unpacked, nor is anything packed that was not; what is no gzip is no matter either."""
    for body in (gzip.compress(b"hello" * 100), b"no gzip"):
        reply = await answered(front, head("200 OK", Content_Encoding="gzip", Content_Length=str(len(body))) + body)
        assert (reply.body, reply.headers["content-encoding"]) == (body, "gzip")


async def test_early_hints_are_passed_over(front: Front) -> None:
    """The answer is the final one."""
    raw = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + head("200 OK", Content_Length="2") + b"ok"
    assert (await answered(front, raw)).body == b"ok"


async def test_large_headers_of_the_platform(front: Front) -> None:
    """Longer ones than servers take of clients are handed on."""
    raw = head("200 OK", X_Long="a" * 30_000, Content_Length="2") + b"ok"
    assert (await answered(front, raw)).headers["x-long"] == "a" * 30_000


@pytest.mark.parametrize(
    ("location", "handed_on"),
    [
        ("{root}/v1/agents/?a=1", "/v1/agents/?a=1"),
        ("/v1/agents/", "/v1/agents/"),
        ("https://login.example/?next={root}/v1", "https://login.example/?next={root}/v1"),
        ("{root}.evil.example/v1/", "{root}.evil.example/v1/"),
        ("https:{there}/v1/agents/?", "/v1/agents/?"),
        ("{there}/v1/agents/", "/v1/agents/"),
        ("{root}//evil.example/", "{root}//evil.example/"),
        ("{root}/\\evil.example/", "{root}/\\evil.example/"),
        ("https:{there}0/v1/", "https:{there}0/v1/"),
        ("http://127.0.0.1:port/v1/", "http://127.0.0.1:port/v1/"),
        ("http://127.0.0.1/v1/", "http://127.0.0.1/v1/"),
        ("http://[/v1/", "http://[/v1/"),
        ("agents/", "agents/"),
    ],
)
async def test_redirects_are_handed_on(front: Front, location: str, handed_on: str) -> None:
    """They are not followed; one to the platform's own address leads to the same path here."""
    names = {"root": front[0].url, "there": front[0].url.removeprefix("http:")}
    said = location.format(**names)
    reply = await answered(front, head("307 Temporary Redirect", Location=said, Content_Length="0"))
    assert (reply.status, reply.headers["location"]) == (307, handed_on.format(**names))
    assert len(front[0].asked) == 1


@pytest.mark.parametrize(
    ("location", "root", "handed_on"),
    [
        ("https://letta/v1/a", "http://letta", "/v1/a"),
        ("http://Letta:80/v1/a", "https://letta", "/v1/a"),
        ("https://letta:8283/v1/a", "http://letta", "https://letta:8283/v1/a"),
        ("http://letta/below/v1/a#b", "https://letta/below", "/v1/a#b"),
        ("/below/v1/a", "https://letta/below", "/v1/a"),
        ("/v1/a", "https://letta/below", "/v1/a"),
        ("/below//evil.example", "https://letta/below", "/below//evil.example"),
        ("http://letta/other/v1/a", "https://letta/below", "http://letta/other/v1/a"),
        ("http://[::1]:1/v1/a", "http://[::1]:1", "/v1/a"),
    ],
)
def test_redirects_to_the_platforms_root(location: str, root: str, handed_on: str) -> None:
    """Host, port and path say what is its root; a scheme may be the client's, and not the platform's own."""
    assert here(location, root) == handed_on


# -- streams --------------------------------------------------------------------------------------------------------


async def test_events_come_as_they_are_sent(front: Front) -> None:
    """Each piece of a stream is there within milliseconds, and none is joined with one that is not yet said."""
    said: asyncio.Queue[float] = asyncio.Queue()
    go = asyncio.Semaphore(0)

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        for number in range(30):
            await go.acquire()
            said.put_nowait(time.perf_counter())
            await exchange.say(event({"number": number}))
        await exchange.end()

    front[0].script = script
    delays = []
    async with Connection.open(front[1].base) as connection:
        await connection.send("POST", "/v1/agents/x/stream", headers={"Content-Length": "0"})
        status, headers = await connection.head()  # Before there is an event.
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        for number in range(30):
            go.release()
            assert await connection.chunk() == event({"number": number})
            delays.append(time.perf_counter() - await said.get())
        assert await connection.chunk() is None
    assert sorted(delays)[15] < 0.05, delays


async def test_a_client_that_leaves_is_told_to_the_platform_at_once(front: Front) -> None:
    """Its request is closed, whether the platform is speaking, silent, or has not answered yet."""

    async def silent(exchange: Exchange) -> None:
        await exchange.left.wait()

    async def speaking(exchange: Exchange) -> None:
        await exchange.head()
        while not exchange.left.is_set():
            await exchange.say(b"word ")
            await asyncio.sleep(0.001)  # the pace of its words

    async def begun(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.left.wait()

    for script in (silent, speaking, begun):
        front[0].script = script
        front[0].exchanges.clear()
        async with Connection.open(front[1].base) as connection:
            await connection.send("GET", "/v1/agents/")
            if script is not silent:
                await connection.head()
            exchange = (await wait_until(lambda: front[0].exchanges))[0]
        await wait_until(exchange.left.is_set, 1)


# -- failures before the answer -------------------------------------------------------------------------------------


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def close(exchange: Exchange) -> None:
    exchange.cut()


def says(raw: bytes, *, resets: bool = False) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.raw(raw)
        if resets:
            exchange.reset()
        else:
            exchange.cut()

    return script


ENDED = "The platform has ended the connection without an answer."
NO_HTTP = "The platform's answer is no HTTP."
BEFORE_THE_ANSWER: dict[str, tuple[Script, str]] = {
    "resets": (reset, ENDED),
    "closes": (close, ENDED),
    "half a status": (says(b"HTTP/1.1 20"), ENDED),
    "half the headers": (says(b"HTTP/1.1 200 OK\r\nContent-"), ENDED),
    "resets within the headers": (says(b"HTTP/1.1 200 OK\r\nContent-", resets=True), ENDED),
    "another protocol": (says(b"SSH-2.0-OpenSSH\r\n\r\n"), NO_HTTP),
    "two framings": (
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        NO_HTTP,
    ),
    "a header without end": (says(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000 + b"\r\n\r\n"), NO_HTTP),
    "another protocol unasked": (
        says(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"),
        "The platform has switched protocols unasked.",
    ),
}


@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
@pytest.mark.parametrize("name", BEFORE_THE_ANSWER)
async def test_no_answer(front: Front, method: str, name: str) -> None:
    """The client is told so, and whether to repeat; the request is sent once, also one that could be repeated."""
    upstream, stack = front
    upstream.script, detail = BEFORE_THE_ANSWER[name]
    reply = await stack.fetch(method, "/v1/agents/", body=b"{}" if method == "POST" else None)
    assert (reply.status, reply.json) == (502, {"detail": detail})
    is_repeatable = method == "GET" and "unasked" not in name
    assert reply.headers.get("x-should-retry") == (None if is_repeatable else "false")
    assert reply.headers.get("retry-after") == ("2" if is_repeatable else None)
    assert len(upstream.asked) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_no_answer_in_time(front: Front, method: str) -> None:
    """A platform that takes a request and says nothing is given up; whether it may be asked again depends."""

    async def silent(exchange: Exchange) -> None:
        await exchange.left.wait()

    upstream, stack = front
    upstream.script = silent
    reply = await stack.fetch(method, "/v1/agents/")
    assert (reply.status, reply.json) == (504, {"detail": "The platform has not answered within 1 s."})
    assert reply.headers.get("x-should-retry") == (None if method == "GET" else "false")
    await wait_until(upstream.exchanges[0].left.is_set, 1)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "http://nowhere.invalid", "https://127.0.0.1:{port}"])
async def test_a_platform_that_is_not_there(nats_url: str, url: str) -> None:
    """Nothing was sent, so that the request may be repeated."""
    (port,) = free_ports(1)
    async with in_front_of(nats_url, url.format(port=port)) as stack:
        reply = await stack.fetch("POST", "/v1/agents/", body=b"{}")
        assert (reply.status, reply.json) == (502, {"detail": "The platform cannot be reached. Try again."})
        assert reply.headers["retry-after"] == "2"
        assert (await stack.fetch("GET", f"/v1/runs/{new_run_id()}")).status == 404  # What is here is not disturbed.


# -- failures within the answer -------------------------------------------------------------------------------------

LENGTH = head("200 OK", Content_Length="10")
CHUNKS = head("200 OK", **CHUNKED)
CLOSED = head("200 OK", X_Without="length")

WITHIN_THE_ANSWER: dict[str, Script] = {
    "less than its length": says(LENGTH + b"abc"),
    "less than its length, reset": says(LENGTH + b"abc", resets=True),
    "no last chunk": says(CHUNKS + b"3\r\nabc\r\n"),
    "no last chunk, reset": says(CHUNKS + b"3\r\nabc\r\n", resets=True),
    "half a chunk": says(CHUNKS + b"5\r\nabc"),
    "nothing but headers": says(CHUNKS),
    "half a last chunk": says(CHUNKS + b"3\r\nabc\r\n0\r\n"),
}


async def unfinished(stack: Stack, version: str) -> tuple[dict[str, str], bytes, bool]:
    """The answer's headers, what comes of its body, and whether the connection was reset."""
    async with Connection.open(stack.base) as connection:
        await connection.send("GET", "/v1/agents/", version=version)
        try:
            _, headers = await connection.head()
        except (Cut, ConnectionError):  # A reset may overtake what was sent.
            return {}, b"", True
        body = b""
        try:
            while part := await asyncio.wait_for(connection.reader.read(1000), 5):
                body += part
        except ConnectionError:
            return headers, body, True
        return headers, body, False


@pytest.mark.parametrize("name", WITHIN_THE_ANSWER)
async def test_half_an_answer_is_not_ended_in_good_order(front: Front, name: str) -> None:
    """What the platform leaves unfinished is left unfinished, in whatever way that can be seen; it is asked once."""
    upstream, stack = front
    upstream.script = WITHIN_THE_ANSWER[name]
    headers, body, was_reset = await unfinished(stack, "1.1")
    assert was_reset or "content-length" in headers or not body.endswith(b"0\r\n\r\n"), (headers, body)
    assert was_reset or headers.get("content-length", "10") == "10"
    assert len(upstream.asked) == 1
    headers, body, was_reset = await unfinished(stack, "1.0")
    assert was_reset or headers["content-length"] == "10", (headers, body)


@pytest.mark.parametrize("raw", [LENGTH + b"abc", CHUNKS + b"3\r\nabc\r\n"])
async def test_an_answer_that_falls_silent_is_cut(front: Front, raw: bytes) -> None:
    """After a second without a byte, here, the platform counts as dead."""

    async def script(exchange: Exchange) -> None:
        await exchange.raw(raw)
        await exchange.left.wait()

    upstream, stack = front
    upstream.script = script
    headers, body, was_reset = await unfinished(stack, "1.1")
    assert was_reset or "content-length" in headers or not body.endswith(b"0\r\n\r\n")
    await wait_until(upstream.exchanges[0].left.is_set, 1)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_answer_without_a_length_ends_with_its_connection(front: Front, version: str) -> None:
    """As the platform's does: nothing is said that the platform has not said, such as that this was all."""
    upstream, stack = front
    upstream.script = says(CLOSED + b"abc")
    headers, body, was_reset = await unfinished(stack, version)
    assert (body, was_reset) == (b"abc", False)
    assert not {"content-length", "transfer-encoding"} & set(headers)
    assert headers.get("connection") == (None if version == "1.0" else "close")


async def test_a_gateway_that_stops_cuts(nats_url: str) -> None:
    """What it is passing on is left unfinished, soon, and the platform hears of it."""

    async def begun(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.say(b"abc")
        await exchange.left.wait()

    async with contextlib.AsyncExitStack() as stack:
        async with scripted(nats_url, begun) as (upstream, front):
            connection = await stack.enter_async_context(Connection.open(front.base))
            await connection.send("GET", "/v1/agents/")
            await connection.head()
            assert await connection.chunk() == b"abc"
            started = time.monotonic()
            await front.gateway.__aexit__()
            await wait_until(upstream.exchanges[0].left.is_set, 1)
        assert time.monotonic() - started < 5
        with pytest.raises(Cut):
            await connection.chunk()


async def test_what_ends_well_is_counted_so(front: Front) -> None:
    """Operators see how requests to the platform end."""
    upstream, stack = front

    async def count(outcome: str) -> float:
        text = (await stack.fetch("GET", "/metrics")).body.decode()
        found = [
            line for line in text.splitlines() if line.startswith(f'runstream_passed_on_total{{outcome="{outcome}"}}')
        ]
        return float(found[0].split()[1]) if found else 0

    for script, outcome in ((polite, "answered"), (close, "failed"), (says(LENGTH), "broken")):
        before = await count(outcome)
        upstream.script = script
        await unfinished(stack, "1.1") if outcome == "broken" else await stack.fetch("GET", "/v1/agents/")
        assert await count(outcome) == before + 1
