"""Requests as bytes, well-formed and not, and what a server says to them, read to its end."""

import asyncio
import contextlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.fuzz.cases import BOUND_SECONDS
from tests.support.http import Connection

AGENT = "agent-123e4567-e89b-42d3-8456-426614174000"
RUN = "run-123e4567-e89b-42d3-8456-426614174000"
"""Stands for a run that is there, whose id is as long."""
LAST_REQUEST = b"GET /livez HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
"""What every conversation ends with: whatever a server takes it for, it has nothing to wait for then."""
CHUNKED = "Transfer-Encoding: chunked"
QUIET_SECONDS = 0.6
"""Three times what the rest of a body is waited for in these tests."""

STATUS_LINE = re.compile(rb"HTTP/\d\.\d (\d{3}) [^\r\n]*")
"""In whichever version was asked for, if only it could be: aiohttp repeats it."""
HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([^\r\n\0]*)")
HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Asking:
    """A well-formed request, and what it is answered; `{run}` stands for RUN."""

    method: str
    target: str
    status: int
    body: bytes | None = None
    media: str = "application/json"

    def raw(self, *, version: str = "1.1", is_chunked: bool = False, is_last: bool = False) -> bytes:
        """The bytes of it."""
        lines = [f"{self.method} {self.target.replace('{run}', RUN)} HTTP/{version}", "Host: test"]
        body = self.body or b""
        if self.body is not None:
            lines.append(f"Content-Type: {self.media}")
            lines.append("Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {len(body)}")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if is_chunked else body
        if is_last:
            lines.append("Connection: close")
        return "\r\n".join(lines).encode() + HEAD_END + body


HELLO = b'{"background": true, "input": "hello"}'
OF_THE_GATEWAY = [
    Asking("GET", "/livez", 200),
    Asking("GET", "/v1/runs/?limit=2", 200),
    Asking("GET", "/v1/runs/{run}", 200),
    Asking("GET", "/v1/runs/{run}/stream", 200),
    Asking("POST", "/v1/runs/{run}/stream", 200, b"{}"),
    Asking("GET", "/v1/nothing", 404),
    Asking("DELETE", "/v1/runs/", 405),
    Asking("POST", f"/v1/agents/{AGENT}/messages/stream", 200, HELLO),
    Asking("POST", f"/v1/agents/{AGENT}/messages", 200, HELLO),
    Asking("POST", f"/v1/conversations/?agent_id={AGENT}", 200, b"{}"),
    Asking("POST", f"/v1/agents/{AGENT}/messages", 422, b"{"),
]
OF_THE_BROKER = [
    Asking("GET", "/livez", 200),
    Asking("GET", "/ingest/v1/runs", 404),
    Asking("POST", "/ingest/v1/runs", 201, b'{"agent_id": "%b"}' % AGENT.encode()),
    Asking("POST", "/ingest/v1/runs/{run}/lease", 200),
    Asking("POST", "/ingest/v1/runs/{run}/chunks", 200, b'{"n": 1}'),
    Asking("POST", "/ingest/v1/runs/{run}/chunks", 200, b'{"n": 1}\n\n{"n": 2}\n', "application/x-ndjson"),
    Asking("POST", "/ingest/v1/runs/{run}/chunks", 422, b'{"n": 1'),
    Asking("POST", "/ingest/v1/runs/{run}/chunks", 415, b"a=1", "application/x-www-form-urlencoded"),
]
PORTS = {"gateway": OF_THE_GATEWAY, "broker": OF_THE_BROKER}


@dataclass(frozen=True)
class Answered:
    """One whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class NotWhole(Exception):
    """What was read ends within an answer."""


def answers_in(raw: bytes) -> list[Answered]:
    """Read what a server has said; an AssertionError if that is no HTTP. Raises `NotWhole`."""
    found = []
    while raw:
        block, end, raw = raw.partition(HEAD_END)
        if not end:
            raise NotWhole(block)
        status_line, *lines = block.split(b"\r\n")
        said = STATUS_LINE.fullmatch(status_line)
        assert said is not None, f"no answer begins with {status_line[:200]!r}"
        headers: dict[str, str] = {}
        for line in lines:
            header = HEADER_LINE.fullmatch(line)
            assert header is not None, f"no header: {line[:200]!r}"
            headers[header[1].decode().lower()] = header[2].decode("latin-1")
        status = int(said[1])
        if status == 100:
            continue
        body, raw = _body(status, headers, raw)
        found.append(Answered(status, headers, body))
    return found


def _body(status: int, headers: dict[str, str], raw: bytes) -> tuple[bytes, bytes]:
    """The body of an answer, and what follows it."""
    if status in {204, 304} or raw.startswith(b"HTTP/"):
        return b"", raw  # The answer to HEAD: no body of runstream's begins like that.
    if headers.get("transfer-encoding") == "chunked":
        parts = []
        while True:
            line, end, raw = raw.partition(b"\r\n")
            if not end:
                raise NotWhole(line)
            size = int(line, 16)
            if len(raw) < size + 2:
                raise NotWhole(raw)
            assert raw[size : size + 2] == b"\r\n", f"a chunk of {size} bytes ends with {raw[size : size + 2]!r}"
            parts.append(raw[:size])
            raw = raw[size + 2 :]
            if not size:
                return b"".join(parts), raw
    length = int(headers.get("content-length", len(raw)))
    if 0 < len(raw) < length:
        raise NotWhole(raw)
    return raw[:length], raw[length:]


async def said_to(connection: Connection, pieces: Sequence[bytes]) -> tuple[bytes, bool]:
    """Send these pieces, each by itself; returns all that is said, and whether the connection was closed.

    Who has been answered, and hears nothing more, need not wait for the end.
    """
    raw = bytearray()
    is_closed = False

    async def listen() -> None:
        nonlocal is_closed
        with contextlib.suppress(ConnectionError):
            while piece := await connection.reader.read(2**16):
                raw.extend(piece)
        is_closed = True

    listening = asyncio.create_task(listen(), name="listening")
    try:
        for piece in pieces:
            await connection.send_raw(piece)
            for _ in range(3):  # The server has its turns, and reads what is there.
                await asyncio.sleep(0)
        async with asyncio.timeout(BOUND_SECONDS):
            length = -1
            while not is_closed and not (raw and length == len(raw)):
                length = len(raw)
                await asyncio.wait([listening], timeout=QUIET_SECONDS)
    except TimeoutError:
        complaint = f"it hangs: nothing is said to {b''.join(pieces)[-500:]!r} but {bytes(raw)!r}"
        raise AssertionError(complaint) from None
    finally:
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening
    return bytes(raw), is_closed


def split(raw: bytes) -> st.SearchStrategy[list[bytes]]:
    """The bytes in some pieces."""
    cuts = st.lists(st.integers(0, len(raw)), max_size=12).map(lambda found: [0, *sorted(found), len(raw)])
    return cuts.map(lambda at: [raw[a:b] for a, b in itertools.pairwise(at)])


# -- what is no HTTP, or is at its edge -------------------------------------------------------------------------------

METHODS = st.sampled_from(
    [
        "GET",
        "POST",
        "HEAD",
        "OPTIONS",
        "CONNECT",
        "TRACE",
        "PUT",
        "DELETE",
        "PATCH",
        "PRI",
        "get",
        "G\0T",
        "",
        "M" * 9000,
    ]
)
TARGETS = st.sampled_from(
    [
        "*",
        "/",
        "//",
        "",
        "livez",
        "test:443",
        "http://test/livez",
        "http://[::1",
        "/livez#x",
        "/livez?\x7f",
        "/%",
        "/%zz",
        "/%00",
        "/v1/runs/%ff",
        "/v1/runs/../livez",
        "/v1/%2e%2e/livez",
        "/v1/runs/?limit=1&limit=2&=&%ff=%ff",
        "/v1/runs/?" + "a=1&" * 1500,
        "/" + "a" * 9000,
        "/v1/runs/\t",
        "/v1/ru\xffns",
        "/v1/runs/{run}/stream?starting_after=9e9",
        "/latest/v1/runs/",
        "/latest//v1",
        "/ingest/",
        "/ingest/v1/runs/%7Brun%7D/end",
        "/v1/runs/{run}/messages?after=%00",
    ]
)
VERSIONS = st.sampled_from(
    ["HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/1.9", "HTTP/2.0", "HTTP/11", "http/1.1", "HTTP/1.1 ", "", "FTP/1.1"]
)
TEXT = st.text(st.characters(max_codepoint=255), max_size=20)
NAMES = st.sampled_from(
    [
        "Content-Length",
        "content-length",
        "Transfer-Encoding",
        "Host",
        "Connection",
        "Expect",
        "Content-Type",
        "Content-Encoding",
        "Upgrade",
        "Accept-Encoding",
        "user_id",
        "Last-Event-ID",
        "Expected-Index",
        "Origin",
        "Authorization",
        "Cookie",
        "traceparent",
        "Range",
        "Trailer",
    ]
)
VALUES = st.sampled_from(
    [
        "0",
        "1",
        "5",
        "-1",
        "+5",
        "5,5",
        "0x5",
        "1_0",
        "chunked",
        "Chunked",
        "identity",
        "gzip,chunked",
        "chunked,chunked",
        "chunked,gzip",
        "xchunked",
        "close",
        "keep-alive",
        "upgrade",
        "websocket",
        "h2c",
        "100-continue",
        "101-continue",
        "application/json",
        "application/x-ndjson",
        'text/plain;charset="',
        "a/b/c",
        ";",
        "gzip",
        "deflate",
        "br",
        "test",
        "bytes=0-",
        "user-1",
        "*",
    ]
)
NAMED = st.tuples(NAMES, VALUES).map(": ".join)
"""A header that is well-formed, whatever it says."""
ODD = st.tuples(
    st.one_of(NAMES, st.sampled_from(["", " ", "X\0", "\u00c4", "X:", "X-A "])),
    st.one_of(TEXT, VALUES, st.sampled_from(["", " ", "5 5", "\tchunked", "\u00b2", "9" * 30, "a" * 9000])),
).map(": ".join)
LINES = st.one_of(
    NAMED,
    ODD,
    TEXT,
    st.sampled_from(
        [" folded", "\tfolded: 1", "no colon", ": no name", "A: 1\rB: 2", "A: 1\nB: 2", "X: " + "y" * 20_000]
    ),
).map(lambda line: [line])
HEADERS = st.lists(
    st.one_of(
        LINES,
        st.integers(100, 3000).map(lambda count: [f"X-{n}: {n}" for n in range(count)]),
        st.sampled_from(
            [["Content-Length: 5"] * 2, ["Host: a", "Host: b"], ["Content-Length: 5", "Transfer-Encoding: chunked"]]
        ),
    ),
    max_size=5,
).map(lambda groups: [line for group in groups for line in group])
SIZES = st.sampled_from(
    [
        b"0",
        b"5",
        b"5;x=y",
        b"5 ",
        b"-5",
        b"+5",
        b"0x5",
        b"5\t",
        b"",
        b"g",
        b"7fffffffffffffff",
        b"f" * 20,
        b"5;" + b"x" * 9000,
    ]
)
CHUNKS = st.lists(
    st.tuples(
        SIZES,
        st.sampled_from([b"\r\n", b"\n", b"\r", b""]),
        st.sampled_from([b"hello", b'{"a"', b"", b"hello!"]),
        st.sampled_from([b"\r\n", b"\n", b""]),
    ).map(b"".join),
    max_size=4,
).map(b"".join)
BODIES = st.one_of(
    st.sampled_from([b"", HELLO, b'{"n": 1}\n', b"0\r\n\r\n", b"0\r\nTrailer: x\r\n\r\n", b"0\r\nno trailer\r\n\r\n"]),
    CHUNKS,
    st.binary(max_size=40),
)


def absurd(port: str) -> st.SearchStrategy[bytes]:
    """A request of which anything may be wrong, or one thing, or nothing but what it says."""
    known = st.sampled_from(PORTS[port])
    asked = known.map(lambda each: f"{each.method} {each.target}")
    lines = st.one_of(
        st.tuples(asked, st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.0"])).map(" ".join),
        st.tuples(METHODS, st.one_of(TARGETS, known.map(lambda each: each.target)), VERSIONS).map(" ".join),
        TEXT,
    )
    named = st.lists(NAMED, max_size=4)
    framed = st.sampled_from([["Host: test"], ["Host: test", "Transfer-Encoding: chunked"], []])
    ends = st.sampled_from(["\r\n", "\r\n", "\n", "\r"])
    well = st.just("\r\n")
    return st.one_of(
        st.builds(_request, lines, framed, HEADERS, ends, BODIES),
        st.builds(_request, asked.map("{} HTTP/1.1".format), framed, named, well, BODIES),
        st.builds(_request, asked.map("{} HTTP/1.1".format), st.just(["Host: test", CHUNKED]), named, well, CHUNKS),
        st.builds(_request, TARGETS.map("GET {} HTTP/1.1".format), st.just(["Host: test"]), named, well, st.just(b"")),
        st.builds(_request, METHODS.map("{} /livez HTTP/1.1".format), st.just(["Host: test"]), named, well, BODIES),
    )


def _request(line: str, framed: list[str], more: list[str], end: str, body: bytes) -> bytes:
    head = end.join([line, *framed, *more, "", ""])
    return head.replace("{run}", RUN).encode("latin-1", "replace") + body
