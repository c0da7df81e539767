"""The HTTP agent alone: what it asks, what it makes of the answer, and what it leaves when it is stopped."""

import asyncio
import gzip
import random
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from runstream.broker.agents.http import HeadersFor, http_agent
from runstream.broker.agents.http_answer import REFUSAL_SECONDS
from runstream.broker.agents.http_platform import Platform
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.errors import AgentFailed
from runstream.schemas import RunRequest, encode_chunk, new_agent_id, new_conversation_id, new_run_id
from tests.support.upstream import DONE, Exchange, Script, Upstream, event, plays, upstream_running
from tests.support.waiting import wait_until

STOP = event({"message_type": "stop_reason", "stop_reason": "end_turn"})
BY_URL = "/stream"
"""A path that makes the platform one that is asked by its URL, as it is."""
QUICK: Mapping[str, Any] = {"silence_seconds": 20, "patience_seconds": 0.5}
"""Short where a test would otherwise wait for the product's patience."""
SHORT: Mapping[str, Any] = {"silence_seconds": 0.5}
"""For platforms that are to be found silent: a busy machine is not."""

Said = list[dict[str, Any]]


def run_request(**facts: Any) -> RunRequest:
    """A run that is to be answered."""
    return RunRequest(**{"run_id": new_run_id(), "agent_id": new_agent_id(), "body": {"input": "hello"}, **facts})


@asynccontextmanager
async def answering(
    script: Script, path: str = "", *, headers_for: HeadersFor | None = None, **settings: Any
) -> AsyncIterator[tuple[Upstream, "Asking"]]:
    """A platform, and the agent that asks it."""
    async with (
        upstream_running(script) as upstream,
        http_agent(Platform(upstream.url + path), UpstreamSettings(**{**QUICK, **settings}), headers_for) as agent,
    ):
        yield upstream, Asking(agent)


class Asking:
    """One agent, and what it says."""

    def __init__(self, agent: Any) -> None:
        self.agent = agent

    def chunks(self, run: RunRequest | None = None) -> AsyncGenerator[Any, None]:
        """Ask for a run."""
        chunks: AsyncGenerator[Any, None] = self.agent(run or run_request())
        return chunks

    async def all(self, run: RunRequest | None = None) -> Said:
        """Ask for a run, and give all that was said."""
        return [stored(chunk) async for chunk in self.chunks(run)]

    async def failure(self, run: RunRequest | None = None) -> tuple[Said, AgentFailed]:
        """Ask for a run that fails; gives what was said before it did."""
        said: Said = []
        try:
            async for chunk in self.chunks(run):
                said.append(stored(chunk))
        except AgentFailed as error:
            return said, error
        complaint = f"it did not fail, and said {said}"
        raise AssertionError(complaint)


def stored(chunk: Any) -> dict[str, Any]:
    """A chunk as it is stored, without our run's id."""
    said: dict[str, Any] = msgspec.json.decode(encode_chunk(chunk, run_id="ours"))
    return {key: value for key, value in said.items() if (key, value) != ("run_id", "ours")}


def word(number: int) -> dict[str, Any]:
    return {"message_type": "assistant_message", "content": f"{number} "}


def words(count: int) -> list[bytes]:
    return [event(word(number)) for number in range(count)]


STOPPED = {"message_type": "stop_reason", "stop_reason": "end_turn"}


# -- what is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "agents", "conversations"),
    [
        ("", "/v1/agents/{}/messages/stream", "/v1/conversations/{}/messages"),
        ("/", "/v1/agents/{}/messages/stream", "/v1/conversations/{}/messages"),
        ("/v1", "/v1/agents/{}/messages/stream", "/v1/conversations/{}/messages"),
        ("/v1/", "/v1/agents/{}/messages/stream", "/v1/conversations/{}/messages"),
        (
            "/le%2Ftta/v1?a=b",
            "/le%2Ftta/v1/agents/{}/messages/stream?a=b",
            "/le%2Ftta/v1/conversations/{}/messages?a=b",
        ),
    ],
)
async def test_a_letta_platform_is_asked_on_its_paths(path: str, agents: str, conversations: str) -> None:
    """Without a path, or with one that ends in /v1: the agent's path, or the conversation's if there is one."""
    body = {"input": "hello", "background": True, "streaming": False, "include_pings": False, "of_tomorrow": [1.0]}
    direct, within = run_request(body=body), run_request(body=body, conversation_id=new_conversation_id())
    async with answering(plays([STOP, DONE]), path) as (upstream, agent):
        assert await agent.all(direct) == await agent.all(within) == [STOPPED]
    assert [(asked.method, asked.target) for asked in upstream.asked] == [
        ("POST", agents.format(direct.agent_id)),
        ("POST", conversations.format(within.conversation_id)),
    ]
    for asked in upstream.asked:
        assert asked.json == {**body, "background": False, "streaming": True, "include_pings": True}


@pytest.mark.parametrize("path", ["/stream", "/v2", "/v1/chat?key=a%20b&c", "/a%2Fb/", "/xv1"])
async def test_any_other_url_is_asked_as_it_is(path: str) -> None:
    """With its query, and with the client's body but for `background`."""
    run = run_request(body={"messages": [{"role": "user", "content": "日"}], "background": True})
    async with answering(plays([DONE]), path) as (upstream, agent):
        await agent.all(run)
    (asked,) = upstream.asked
    assert (asked.method, asked.target) == ("POST", path)
    assert asked.json == {**run.body, "background": False}


async def test_a_request_says_what_it_is() -> None:
    """Events are asked for, uncompressed; the trace goes on; headers are the configured ones, and who asks."""

    async def who(run: RunRequest) -> Mapping[str, str]:
        return {"Authorization": f"Bearer of {run.tenant}"}

    headers = {"X-Team": "blue", "user-agent": "tests"}
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with answering(plays([DONE]), BY_URL, headers=headers, headers_for=who) as (upstream, agent):
        await agent.all(run_request(traceparent=trace))
        await agent.all()
    first, second = upstream.asked
    assert first.headers["accept"] == "text/event-stream"
    assert first.headers["accept-encoding"] == "identity"
    assert first.headers["content-type"] == "application/json"
    assert first.headers["authorization"] == "Bearer of default"
    assert (first.headers["x-team"], first.headers["user-agent"]) == ("blue", "tests")
    assert first.headers["traceparent"] == trace
    assert "traceparent" not in second.headers


@pytest.mark.parametrize("path", [BY_URL, "/v1"])
async def test_a_platform_is_told_which_run_it_is_asked_for(path: str) -> None:
    """And which agent, and in which conversation, if it is in one: a URL of the platform's own says none of it."""
    direct, within = run_request(), run_request(conversation_id=new_conversation_id())
    async with answering(plays([STOP, DONE]), path) as (upstream, agent):
        await agent.all(direct)
        await agent.all(within)
    names = ("x-runstream-run-id", "x-runstream-agent-id", "x-runstream-conversation-id")
    assert [[asked.headers.get(name) for name in names] for asked in upstream.asked] == [
        [run.run_id, run.agent_id, run.conversation_id] for run in (direct, within)
    ]


async def test_who_asks_may_be_refused() -> None:
    """What tells the platform who asks may fail the run; then nothing is sent."""

    async def nobody(_: RunRequest) -> Mapping[str, str]:
        raise AgentFailed("credential_expired")

    async with answering(plays([DONE]), headers_for=nobody) as (upstream, agent):
        said, error = await agent.failure()
    assert (said, error.error_type, upstream.asked) == ([], "credential_expired", [])


@pytest.mark.parametrize("value", ["hunter2\r\nX: 1", "hunter2é"])
async def test_a_header_that_cannot_be_sent_is_not_shown(value: str) -> None:
    """It fails the run, and does not stand in the error."""

    async def who(_: RunRequest) -> Mapping[str, str]:
        return {"Authorization": value}

    async with answering(plays([DONE]), headers_for=who) as (upstream, agent):
        _, error = await agent.failure()
    assert (error.error_type, upstream.asked) == ("internal_error", [])
    assert "hunter2" not in error.detail
    assert "header" in error.detail


async def test_no_run_is_told_what_the_platform_told_another() -> None:
    """A cookie is not sent back, with no run and to no path."""

    async def script(exchange: Exchange) -> None:
        await exchange.head(
            headers={
                "Content-Type": "text/event-stream",
                "Transfer-Encoding": "chunked",
                "Set-Cookie": "session=1; Path=/",
            }
        )
        await exchange.say(STOP, DONE)

    async with answering(script) as (upstream, agent):
        await agent.all()
        await agent.all()
    assert [asked.headers.get("cookie") for asked in upstream.asked] == [None, None]


# -- what is said -----------------------------------------------------------------------------------------------------

STREAM = [
    b"\xef\xbb\xbf: hello\n\n",
    event({"message_type": "assistant_message", "content": "日本🙂"}),
    b"id: 7\n\n",
    b": ping\n\n",
    b"retry: 3000\n\n",
    event({"choices": [{"delta": "é"}], "run_id": "theirs", "object": "chunk"}, name="delta"),
    b'data: {"message_type": "assistant_message",\ndata:   "content": ["a",\ndata: 1.0]}\nid: 8\n\n',
    b'event: message\ndata:{"a":1}\n\n\n\n',
    STOP,
    DONE,
]
MEANT = [
    {"message_type": "assistant_message", "content": "日本🙂"},
    {"choices": [{"delta": "é"}], "run_id": "theirs", "object": "chunk"},
    {"message_type": "assistant_message", "content": ["a", 1.0]},
    {"a": 1},
    STOPPED,
]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, "random"])
async def test_a_stream_is_understood_however_it_is_cut(size: int | str, line_end: str) -> None:
    """Every end of a line, in pieces of every size, within characters and line ends, too: the same is said."""
    body = b"".join(STREAM).replace(b"\n", line_end.encode())
    chance = random.Random(line_end)
    pieces, start = [], 0
    while start < len(body):
        step = size if isinstance(size, int) else chance.randint(1, 40)
        pieces.append(body[start : start + step])
        start += step
    async with answering(plays(pieces)) as (_, agent):
        assert await agent.all() == MEANT


async def test_every_chunk_is_there_when_its_event_is() -> None:
    """No chunk waits for the next one, not even where lines end in CR."""
    for line_end in (b"\n", b"\r\n", b"\r"):
        go = asyncio.Queue[None]()

        async def script(exchange: Exchange, line_end: bytes = line_end, go: "asyncio.Queue[None]" = go) -> None:
            await exchange.head()
            for number in range(5):
                await go.get()
                await exchange.say(event(word(number)).replace(b"\n", line_end))
            await exchange.left.wait()

        async with answering(script) as (_, agent), aclosing(agent.chunks()) as chunks:
            for number in range(5):
                go.put_nowait(None)
                assert stored(await anext(chunks)) == word(number)


async def test_a_charset_that_is_not_utf_8_is_passed_over() -> None:
    """An event stream is UTF-8 whatever its headers say; what is not UTF-8 in it is replaced."""

    async def script(exchange: Exchange) -> None:
        content_type = "Text/Event-Stream; charset=latin-1"
        await exchange.head(headers={"Content-Type": content_type, "Transfer-Encoding": "chunked"})
        await exchange.say(event({"a": "日"}), b'data: {"a":"\xff"}\n\n', STOP, DONE)
        await exchange.end()

    async with answering(script) as (_, agent):
        assert await agent.all() == [{"a": "日"}, {"a": "\ufffd"}, STOPPED]


@pytest.mark.parametrize(
    "data",
    [
        "hello",
        "[1]",
        "{}",
        '{"a":',
        "[DONE",
        '{"message_type":"stop_reason","stop_reason":7}',
        '{"message_type":"stop_reason","stop_reason":null}',
        '{"message_type":"stop_reason"}',
    ],
)
async def test_what_is_no_object_ends_the_run(data: str) -> None:
    """So does a stop reason that is none. What came before it counts, and nothing after it does."""
    async with answering(plays([*words(2), event(data), *words(1), STOP, DONE])) as (_, agent):
        said, error = await agent.failure()
    assert said == [word(0), word(1)]
    assert error.error_type == "upstream_invalid"
    assert data in error.detail


@pytest.mark.parametrize("path", ["", BY_URL])
async def test_an_error_message_of_the_platforms_is_passed_on(path: str) -> None:
    """`event: error` with an error_message: it is yielded as it is, and nothing after it is read."""
    error = {"message_type": "error_message", "error_type": "llm_error", "message": "m", "detail": "d"}
    stopped = {"message_type": "stop_reason", "stop_reason": "llm_api_error"}
    stream = [*words(1), event(stopped), event(error, "error"), event("rubbish"), DONE]
    async with answering(plays(stream), path) as (_, agent):
        assert await agent.all() == [word(0), stopped, error]


@pytest.mark.parametrize("path", ["", BY_URL])
@pytest.mark.parametrize("text", ['{"error": "no poll_interval", "code": 3}', "out of luck"])
async def test_any_other_error_of_the_platforms_is_told(path: str, text: str) -> None:
    """`event: error` with other JSON, or with no JSON at all, ends the run with that text, stopped or not."""
    async with answering(plays([*words(1), STOP, event(text, "error"), DONE]), path) as (_, agent):
        said, error = await agent.failure()
    assert said == [word(0), STOPPED]
    assert (error.error_type, error.detail) == ("internal_error", text)


# -- how it ends ------------------------------------------------------------------------------------------------------

HALVES = [b"dat", b"data: 1", b'data: {"a":1}\n', b"event: error\n", b"data: [DONE"]


@pytest.mark.parametrize("end", [[DONE], [b"data: [DONE]"], [b"data:[DONE]\n"], [], [b": bye"], [b"\n\n"]])
async def test_a_good_end(end: list[bytes]) -> None:
    """A clean end with or without `[DONE]`: where any URL goes it is one, and a Letta platform owes a stop reason."""
    stream = [*words(2), *end]
    async with answering(plays(stream), BY_URL) as (_, agent):
        assert await agent.all() == [word(0), word(1), STOPPED]
    async with answering(plays(stream)) as (_, agent):
        assert await agent.all() == [word(0), word(1)], "the worker ends it as stream_incomplete"
    async with answering(plays([STOP, *stream])) as (_, agent):
        assert await agent.all() == [STOPPED, word(0), word(1)]


@pytest.mark.parametrize("end", [[], [DONE], [b"data: {"]])
async def test_an_error_is_an_ending_in_whatever_event_it_comes(end: list[bytes]) -> None:
    """An error_message without `event: error` is the run's error, and no good end is made up after it."""
    error = {"message_type": "error_message", "error_type": "llm_error", "message": "m"}
    for path in ("", BY_URL):
        async with answering(plays([event(error), *end]), path) as (_, agent):
            assert await agent.all() == [error]


async def test_a_stop_reason_of_the_platforms_is_the_only_one() -> None:
    """Where any URL goes, one is made up only if there was none."""
    stopped = {"message_type": "stop_reason", "stop_reason": "max_steps"}
    async with answering(plays([*words(1), event(stopped)]), BY_URL) as (_, agent):
        assert await agent.all() == [word(0), stopped]


@pytest.mark.parametrize("path", ["", BY_URL])
@pytest.mark.parametrize("half", HALVES)
async def test_an_end_within_an_event_is_none(half: bytes, path: str) -> None:
    """What is left in the middle of an event has been cut, unless a stop reason had come."""
    async with answering(plays([*words(1), half]), path) as (_, agent):
        said, error = await agent.failure()
        assert (said, error.error_type) == ([word(0)], "stream_incomplete")
        assert "within an event" in error.detail
    async with answering(plays([STOP, half]), path) as (_, agent):
        assert await agent.all() == [STOPPED]


@pytest.mark.parametrize("path", ["", BY_URL])
@pytest.mark.parametrize("how", ["cut", "reset"])
async def test_a_connection_that_breaks(how: str, path: str) -> None:
    """A platform that dies in the middle has not ended its answer, unless a stop reason had come."""

    def dies_after(*pieces: bytes) -> tuple[Script, asyncio.Event]:
        go = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            await exchange.head()
            await exchange.say(*pieces)
            await go.wait()
            exchange.cut() if how == "cut" else exchange.reset()

        return script, go

    script, go = dies_after(*words(2), b"data: ")
    async with answering(script, path) as (_, agent), aclosing(agent.chunks()) as chunks:
        assert [stored(await anext(chunks)) for _ in range(2)] == [word(0), word(1)]
        go.set()
        with pytest.raises(AgentFailed) as caught:
            await anext(chunks)
    assert caught.value.error_type == "stream_incomplete"
    assert "The connection to the platform broke" in caught.value.detail

    script, go = dies_after(STOP)
    async with answering(script, path) as (_, agent), aclosing(agent.chunks()) as chunks:
        assert stored(await anext(chunks)) == STOPPED
        go.set()
        assert [chunk async for chunk in chunks] == []


async def test_an_end_that_proves_nothing() -> None:
    """A response without framing ends with its connection: only `[DONE]` or a stop reason tells that it was whole."""

    def bare(*pieces: bytes) -> Script:
        async def script(exchange: Exchange) -> None:
            await exchange.head(headers={"Content-Type": "text/event-stream"})
            await exchange.raw(b"".join(pieces))
            exchange.cut()

        return script

    async with answering(bare(*words(1), DONE), BY_URL) as (_, agent):
        assert await agent.all() == [word(0), STOPPED]
    async with answering(bare(*words(1), STOP), BY_URL) as (_, agent):
        assert await agent.all() == [word(0), STOPPED]
    async with answering(bare(*words(1)), BY_URL) as (_, agent):
        said, error = await agent.failure()
    assert (said, error.error_type) == ([word(0)], "stream_incomplete")
    assert "[DONE]" in error.detail


@pytest.mark.parametrize("how", ["cut", "reset"])
async def test_a_request_is_sent_once(how: str) -> None:
    """A platform that dies without an answer may have begun one: it is not asked again."""

    async def script(exchange: Exchange) -> None:
        exchange.cut() if how == "cut" else exchange.reset()

    async with answering(script) as (upstream, agent):
        said, error = await agent.failure()
    assert (said, error.error_type, len(upstream.asked)) == ([], "stream_incomplete", 1)


async def test_an_answer_that_is_no_http() -> None:
    """A port where something else listens is told as what it is: a connection that broke."""

    async def script(exchange: Exchange) -> None:
        await exchange.raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

    async with answering(script) as (_, agent):
        _, error = await agent.failure()
    assert error.error_type == "stream_incomplete"
    assert "SSH-2.0" in error.detail


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status", ["404 Not Found", "429 Too Many Requests", "500 Internal Server Error", "401 Unauthorized", "201 Created"]
)
async def test_a_refusal_is_told_with_its_body(status: str) -> None:
    """Whatever is not 200 ends the run, with the status and what the platform said of it."""

    async def script(exchange: Exchange) -> None:
        await exchange.refuse(status, '{"detail":"日"}\n'.encode(), content_type="application/json")

    async with answering(script) as (upstream, agent):
        said, error = await agent.failure()
    assert (said, error.error_type) == ([], "upstream_rejected")
    assert error.detail == f'HTTP {status}: {{"detail":"日"}}'
    assert len(upstream.asked) == 1


async def test_a_refusal_without_a_body() -> None:
    """The status alone has to do."""

    async def script(exchange: Exchange) -> None:
        await exchange.refuse("503 Service Unavailable")

    async with answering(script) as (_, agent):
        assert (await agent.failure())[1].detail == "HTTP 503 Service Unavailable."


async def test_a_refusal_of_any_length_is_read_as_far_as_it_explains() -> None:
    """Eight KiB of its body, and the connection is closed."""

    async def script(exchange: Exchange) -> None:
        await exchange.head("500 Internal Server Error")
        while not exchange.left.is_set():
            await exchange.say(b"x" * 1000)

    async with answering(script) as (upstream, agent):
        async with asyncio.timeout(REFUSAL_SECONDS):
            _, error = await agent.failure()
        await asyncio.wait_for(upstream.exchanges[0].left.wait(), 1)
    assert error.detail == "HTTP 500 Internal Server Error: " + "x" * 8192


async def test_a_refusal_that_breaks_off_is_told_as_far_as_it_came() -> None:
    """What cannot be read of the body does not hide the status."""

    async def script(exchange: Exchange) -> None:
        await exchange.head("502 Bad Gateway")
        await exchange.say(b"half of it")
        exchange.cut()

    async with answering(script) as (_, agent):
        assert (await agent.failure())[1].detail == "HTTP 502 Bad Gateway: half of it"


@pytest.mark.parametrize("status", ["301 Moved Permanently", "307 Temporary Redirect", "308 Permanent Redirect"])
async def test_a_redirect_is_not_followed(status: str) -> None:
    """It is told where it leads, without what may be secret in it; nobody is asked there."""

    async def script(exchange: Exchange) -> None:
        await exchange.refuse(status, location=f"http://u:hunter2@{exchange.asked.headers['host']}/there?key=hunter2")

    async with answering(script) as (upstream, agent):
        _, error = await agent.failure()
    assert error.error_type == "upstream_rejected"
    assert f"{upstream.url}/there, and redirects are not followed" in error.detail
    assert error.detail.startswith(f"HTTP {status}, to ")
    assert "hunter2" not in error.detail
    assert len(upstream.asked) == 1


@pytest.mark.parametrize(
    "location", ["http://platform:x/", "http://u:hunter2/@h/", "https:/u:hunter2@h/", "//u:hunter2@h:x/", "/hunter2@h"]
)
async def test_a_redirect_to_what_is_no_url(location: str) -> None:
    """It is a refusal like any other; where it would have led is not shown, as there may be a password in it."""

    async def script(exchange: Exchange) -> None:
        await exchange.refuse("302 Found", b"why", location=location)

    async with answering(script) as (_, agent):
        _, error = await agent.failure()
    assert error.error_type == "upstream_rejected"
    assert error.detail == "HTTP 302 Found, to what is no URL, and redirects are not followed: why"


@pytest.mark.parametrize(
    ("content_type", "body", "shown"),
    [
        ("text/html; charset=utf-8", b"<!doctype html><title>Sign in</title>", "<title>Sign in"),
        ("application/json", b'{"messages":[]}', '{"messages":[]}'),
        ("text/plain", b"data: {}\n\n", "data: {}"),
        ("", b"hello", "its content type is not named: hello"),
    ],
)
async def test_an_answer_that_is_no_event_stream_is_refused(content_type: str, body: bytes, shown: str) -> None:
    """A page or a JSON object with status 200: its type and how it begins are told."""

    async def script(exchange: Exchange) -> None:
        await exchange.refuse("200 OK", body, **({"content_type": content_type} if content_type else {}))

    async with answering(script) as (_, agent):
        said, error = await agent.failure()
    assert (said, error.error_type) == ([], "upstream_rejected")
    assert content_type in error.detail
    assert shown in error.detail


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
async def test_an_encoding_that_nobody_asked_for_is_refused(encoding: str, status: str) -> None:
    """A little of it can be a lot, and a good end of it does not show: it is not even looked into."""

    async def script(exchange: Exchange) -> None:
        packed = gzip.compress(b"".join([*words(1), STOP, DONE]))
        framed = {"Content-Encoding": encoding, "Content-Length": str(len(packed))}
        await exchange.head(status, headers={"Content-Type": "text/event-stream", **framed})
        await exchange.raw(packed)

    async with answering(script) as (_, agent):
        said, error = await agent.failure()
    assert (said, error.error_type) == ([], "upstream_rejected")
    why = "" if status != "200 OK" else f", but encoded with {encoding}, and not with identity, as it was asked to be"
    assert error.detail == f"HTTP {status}{why}."


async def test_a_body_that_is_said_to_be_as_it_is() -> None:
    """`identity` is what was asked for."""

    async def script(exchange: Exchange) -> None:
        framed = {"Content-Encoding": "Identity", "Transfer-Encoding": "chunked"}
        await exchange.head(headers={"Content-Type": "text/event-stream", **framed})
        await exchange.say(STOP, DONE)
        await exchange.end()

    async with answering(script) as (_, agent):
        assert await agent.all() == [STOPPED]


# -- silence ----------------------------------------------------------------------------------------------------------


def silent_after(*pieces: bytes, head: bool = True) -> Script:
    async def script(exchange: Exchange) -> None:
        if head:
            await exchange.head()
        await exchange.say(*pieces)
        await exchange.left.wait()

    return script


@pytest.mark.parametrize("path", ["", BY_URL])
@pytest.mark.parametrize("script", [silent_after(head=False), silent_after(), silent_after(b"data: {")])
async def test_a_platform_that_says_nothing(script: Script, path: str) -> None:
    """Before its headers, after them, or within a line: after the time that was set the run ends."""
    async with answering(script, path, **SHORT) as (upstream, agent):
        said, error = await agent.failure()
        assert (said, error.error_type) == ([], "upstream_timeout")
        assert "0.5 s" in error.detail
        await asyncio.wait_for(upstream.exchanges[0].left.wait(), 5)
    assert len(upstream.asked) == 1


async def test_a_platform_that_falls_silent() -> None:
    """What it has said counts, and a stop reason is an ending though nothing follows it."""
    async with answering(silent_after(*words(2)), **SHORT) as (_, agent):
        said, error = await agent.failure()
    assert (said, error.error_type) == ([word(0), word(1)], "upstream_timeout")
    async with answering(silent_after(*words(1), STOP), **SHORT) as (_, agent):
        assert await agent.all() == [word(0), STOPPED]


async def test_bytes_are_no_sign_of_life() -> None:
    """A platform that dribbles a line that never ends is as good as silent."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.say(b"data: ")
        while not exchange.left.is_set():
            await exchange.say(b"x")
            await asyncio.sleep(0.02)  # the platform's pace

    async with answering(script, **SHORT) as (_, agent):
        async with asyncio.timeout(5):
            _, error = await agent.failure()
    assert error.error_type == "upstream_timeout"


@pytest.mark.parametrize("sign", [b": ping\n", event({"message_type": "ping"}), b"\r"])
async def test_comments_and_pings_are_signs_of_life(sign: bytes) -> None:
    """A platform that says every now and then that it thinks may think as long as it likes."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        for _ in range(15):
            await asyncio.sleep(0.1)  # it thinks
            await exchange.say(sign)
        await exchange.say(b"\n", STOP, DONE)
        await exchange.end()

    async with answering(script, silence_seconds=1) as (_, agent):
        assert (await agent.all())[-1] == STOPPED


async def test_who_is_not_listened_to_is_not_silent() -> None:
    """While the store is away nobody reads: that time is not the platform's."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.say(*words(1))
        await exchange.say(*words(1), STOP, DONE)
        await exchange.end()

    async with answering(script, **SHORT) as (_, agent), aclosing(agent.chunks()) as chunks:
        assert stored(await anext(chunks)) == word(0)
        await asyncio.sleep(1)  # Twice the silence that is allowed: the clock is what the test is about.
        assert [stored(chunk) async for chunk in chunks] == [word(0), STOPPED]


# -- connecting -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def reserved() -> AsyncIterator[socket.socket]:
    """A port that is taken, and refuses connections until somebody listens on it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.setblocking(False)
        yield bound


async def test_a_platform_that_is_not_there() -> None:
    """Connecting is tried for as long as was set, and then the run ends."""
    async with reserved() as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        async with http_agent(Platform(url), UpstreamSettings(**QUICK)) as agent:
            said, error = await Asking(agent).failure()
    assert (said, error.error_type) == ([], "upstream_unreachable")
    assert error.detail == "Connecting was tried for 0.5 s: All connection attempts failed"


async def test_a_name_that_does_not_exist() -> None:
    """It is told as what it is."""
    async with http_agent(Platform("http://platform.invalid"), UpstreamSettings(patience_seconds=0)) as agent:
        _, error = await Asking(agent).failure()
    assert error.error_type == "upstream_unreachable"


@asynccontextmanager
async def deaf() -> AsyncIterator[str]:
    """The URL of a port on which no connection is answered."""
    with socket.socket() as bound, socket.socket() as first, socket.socket() as second:
        bound.bind(("127.0.0.1", 0))
        bound.listen(0)
        for waiting in (first, second):  # Nobody accepts them, and the kernel answers no further one.
            waiting.setblocking(False)
            waiting.connect_ex(bound.getsockname())
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize("silence", [0.05, 20])
async def test_a_platform_that_does_not_answer_a_connection(silence: float) -> None:
    """One attempt takes as long as was set, however long silence may last: nobody is silent before he is connected."""
    settings = UpstreamSettings(connect_seconds=0.2, silence_seconds=silence, patience_seconds=1)
    async with asyncio.timeout(5), deaf() as url, http_agent(Platform(url), settings) as agent:
        with capture_logs() as logs:
            _, error = await Asking(agent).failure()
    assert error.error_type == "upstream_unreachable"
    assert error.detail == "Connecting was tried for 1 s: it took too long"
    assert "upstream_not_connected" in {each["event"] for each in logs}, "it was tried once"


async def test_a_platform_that_does_not_speak_tls() -> None:
    """A handshake that is not answered is a connection that is not there, in the same time."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        url = f"https://127.0.0.1:{bound.getsockname()[1]}"
        settings = UpstreamSettings(connect_seconds=0.2, silence_seconds=20, patience_seconds=0)
        async with asyncio.timeout(5), http_agent(Platform(url), settings) as agent:
            _, error = await Asking(agent).failure()
    assert error.error_type == "upstream_unreachable"


async def test_a_platform_that_is_restarted_is_waited_for() -> None:
    """A request that was refused a connection is sent once somebody listens, and once."""
    async with reserved() as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        async with http_agent(Platform(url), UpstreamSettings()) as agent:
            with capture_logs() as logs:
                answer = asyncio.create_task(Asking(agent).all())
                await wait_until(lambda: len(logs) > 1)
            assert {each["event"] for each in logs} == {"upstream_not_connected"}
            async with upstream_running(plays([*words(1), STOP, DONE]), bound) as upstream:
                assert await answer == [word(0), STOPPED]
            assert len(upstream.asked) == 1


async def test_a_closed_connection_is_not_used_again() -> None:
    """Each run has a connection of its own, so that none is lost to one that the platform was about to close."""

    async def script(exchange: Exchange) -> None:
        await exchange.head(headers={"Content-Type": "text/event-stream", "Content-Length": str(len(STOP))})
        await exchange.raw(STOP)
        await exchange.left.wait()

    async with answering(script) as (upstream, agent):
        for _ in range(3):
            assert await agent.all() == [STOPPED]
        assert len(upstream.exchanges) == 3
        await asyncio.wait_for(asyncio.gather(*(each.left.wait() for each in upstream.exchanges)), 5)


# -- bounds -----------------------------------------------------------------------------------------------------------


async def test_an_event_that_never_ends() -> None:
    """What came before it is said; then the run ends, and the platform is not read on."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.say(*words(1), b"data: ")
        while not exchange.left.is_set():
            await exchange.say(b"x" * 10_000)

    async with answering(script, event_bytes=2**16) as (upstream, agent):
        said, error = await agent.failure()
        await asyncio.wait_for(upstream.exchanges[0].left.wait(), 5)
    assert (said, error.error_type) == ([word(0)], "chunk_too_large")
    assert "RUNSTREAM_UPSTREAM_EVENT_BYTES (65536)" in error.detail


async def test_an_event_within_the_bound() -> None:
    """Large is not too large, and many small ones are no large one."""
    large = {"message_type": "assistant_message", "content": "x" * 900_000}
    async with answering(plays([*words(20_000), event(large), STOP, DONE]), event_bytes=10**6) as (_, agent):
        said = await agent.all()
    assert said == [*map(word, range(20_000)), large, STOPPED]


async def test_nobody_reads_ahead_of_who_stores() -> None:
    """A platform is held up when its chunks are not taken: what is read ahead is a buffer, not the answer."""
    size, count = 16_384, 2_000
    fill = "x" * size

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        for number in range(count):
            await exchange.say(event({"n": number, "fill": fill}))
        await exchange.say(DONE)
        await exchange.end()

    async with answering(script, BY_URL) as (upstream, agent), aclosing(agent.chunks()) as chunks:
        assert stored(await anext(chunks))["n"] == 0
        (exchange,) = upstream.exchanges
        sent: list[int] = []

        def is_held_up() -> bool:
            sent.append(exchange.sent_bytes)
            return len(sent) > 10 and sent[-1] == sent[-10]

        await wait_until(is_held_up)
        assert exchange.sent_bytes < size * count / 2
        rest = [stored(chunk) async for chunk in chunks]
    assert [chunk["n"] for chunk in rest[:-1]] == list(range(1, count))
    assert rest[-1] == STOPPED


async def test_hundreds_of_runs_at_one_time() -> None:
    """All of them are answered at once: none waits for a connection that another has."""
    count = 300
    everyone = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.say(event({"said": exchange.asked.json["input"]}))
        await everyone.wait()
        await exchange.say(STOP, DONE)
        await exchange.end()

    async with answering(script) as (upstream, agent):
        answers = [asyncio.create_task(agent.all(run_request(body={"input": number}))) for number in range(count)]
        await wait_until(lambda: len(upstream.exchanges) == count)
        everyone.set()
        assert await asyncio.gather(*answers) == [[{"said": number}, STOPPED] for number in range(count)]


# -- being stopped ----------------------------------------------------------------------------------------------------


async def test_closing_a_run_closes_its_connection() -> None:
    """A run that is stopped stops the platform at once, and no other run."""
    async with answering(silent_after(*words(1))) as (upstream, agent), aclosing(agent.chunks()) as other:
        assert stored(await anext(other)) == word(0)
        stopped = agent.chunks()
        assert stored(await anext(stopped)) == word(0)
        await stopped.aclose()
        await asyncio.wait_for(upstream.exchanges[1].left.wait(), 1)
        assert not upstream.exchanges[0].left.is_set()


@pytest.mark.parametrize("head", [True, False])
async def test_cancelling_a_run_closes_its_connection(head: bool) -> None:
    """A worker that is stopped while it waits for the platform, for its headers or for more, hangs up."""
    async with answering(silent_after(head=head)) as (upstream, agent):
        asking = asyncio.create_task(agent.all())
        await wait_until(lambda: upstream.exchanges)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(upstream.exchanges[0].left.wait(), 1)


async def test_proxies_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the environment names is not asked: a platform is beside runstream, not out in the world."""
    async with reserved() as nobody:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with answering(plays([STOP, DONE])) as (_, agent):
            assert await agent.all() == [STOPPED]


async def test_after_the_end_nobody_listens() -> None:
    """A platform that goes on talking after `[DONE]` is hung up on."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.say(STOP, DONE, *words(3))
        await exchange.left.wait()

    async with answering(script) as (upstream, agent):
        assert await agent.all() == [STOPPED]
        await asyncio.wait_for(upstream.exchanges[0].left.wait(), 1)


async def test_a_stopped_agent_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a task nor a warning, whether its run was over, was stopped, or failed."""
    before = asyncio.all_tasks()
    async with answering(plays([*words(1), STOP, DONE])) as (_, agent):
        await agent.all()
        stopped = agent.chunks()
        await anext(stopped)
        await stopped.aclose()
    async with answering(silent_after(*words(1), b"data: x\n\n")) as (_, agent):
        await agent.failure()
    await wait_until(lambda: asyncio.all_tasks() <= before)
    assert [record for record in caplog.records if not record.name.startswith("runstream.")] == []
