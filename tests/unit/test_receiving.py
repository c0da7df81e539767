"""What a server sends, cut anywhere into reads, comes out as nats-py's own parser has it."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client as NatsClient
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from runstream.broker.headers import Headers
from runstream.broker.receiving import Heard, ListeningClient, _Parser

LISTENED, OTHER = 1, 2
"""Subscriptions: a listener's, and one of nats-py's own."""

Said = tuple[Any, ...]

SUBJECTS = st.sampled_from([b"a", b"live.0.run-1", b"MSG", b"_INBOX.x.1"])
BODIES = st.binary(max_size=40) | st.sampled_from([b"\r\n", b"PING\r\n", b"MSG a 1 3\r\nabc\r\n", b"x" * 5000])
HEADS = st.sampled_from([b"", b"NATS/1.0\r\nRs-Kind: data\r\n\r\n", b"NATS/1.0 404\r\n\r\n"])
OTHERS = st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b'INFO {"server_id":"a"}\r\n', b"-ERR 'Slow'\r\n"])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """One message, as the server writes it: with a space where it has several, or as other servers might."""
    sid, subject, reply = draw(st.sampled_from([LISTENED, OTHER])), draw(SUBJECTS), draw(st.none() | SUBJECTS)
    head, body = draw(HEADS), draw(BODIES)
    words = [b"HMSG" if head else b"MSG", subject, b"%d" % sid, *([reply] if reply else [])]
    sizes = [b"%d" % len(head)] * bool(head) + [b"%d" % (len(head) + len(body))]
    return draw(st.sampled_from([b" ", b"  ", b"\t"])).join([*words, *sizes]) + b"\r\n" + head + body + b"\r\n"


class Client(ListeningClient):
    """Notes what its parser tells it, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[Said] = []
        self.batches: list[int] = []
        self._listeners[LISTENED] = self._hear

    def _hear(self, heard: Sequence[Heard]) -> None:
        self.batches.append(len(heard))

    def hear(self, sid: int, subject: bytes, reply: bytes, headers: bytes, body: bytes) -> bool:
        is_heard = super().hear(sid, subject, reply, headers, body)
        if is_heard:
            self.said.append((sid, subject, reply, body, headers))
        return is_heard

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        self.said.append((sid, subject, reply, data, headers or b""))

    async def _process_ping(self) -> None:
        self.said.append(("ping",))

    async def _process_pong(self) -> None:
        self.said.append(("pong",))

    async def _process_err(self, err_msg: str) -> None:
        self.said.append(("error", err_msg))

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: ARG002  # nats-py's
        self.said.append(("info", info["server_id"]))


async def told(parser: Parser, client: Client, reads: Sequence[bytes]) -> list[Said]:
    for read in reads:
        await parser.parse(read)
    return client.said


def cut(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(at % (len(stream) + 1) for at in cuts)})
    return [stream[start:end] for start, end in pairwise(edges)]


@given(st.lists(messages() | OTHERS, max_size=12), st.lists(st.integers(0, 20_000), max_size=12))
@example([b"MSG a 1 2\r\nab\r\n"] * 3, list(range(60)))
@example([b"PING\r\n", b"HMSG a 1 b 12 14\r\nNATS/1.0\r\n\r\nab\r\n", b"PING\r\n"], list(range(70)))
async def test_everything_is_told_once_and_in_order(said: list[bytes], cuts: list[int]) -> None:
    """Wherever reads begin and end: messages with and without headers, listeners' or not, and all else."""
    reads = cut(b"".join(said), cuts)
    theirs, ours = Client(), Client()
    expected = await told(Parser(theirs), theirs, reads)
    assert await told(ours._ps, ours, reads) == expected
    assert not ours._ps.buf
    assert sum(ours.batches) == sum(each[0] == LISTENED for each in expected)


async def test_what_one_read_brings_is_handed_on_at_once() -> None:
    """Also where other things stand between."""
    client = Client()
    one = b"MSG a 1 2\r\nab\r\n"
    await client._ps.parse(one * 3 + b"PING\r\n" + one * 2 + one[:-1])
    await client._ps.parse(one[-1:])
    assert client.batches == [5, 1]


async def test_a_listener_gets_what_was_sent() -> None:
    """Subject, reply, body and headers, whatever stands in a body."""
    heard: list[Heard] = []
    client = Client()
    client._listeners[LISTENED] = heard.extend
    head = b"NATS/1.0\r\nRs-Kind: data\r\n\r\n"
    await client._ps.parse(b"HMSG a.b 1 c.d %d %d\r\n%bPING\r\n\r\n" % (len(head), len(head) + 6, head))
    assert heard == [Heard("a.b", "c.d", b"PING\r\n", Headers(head))]


ODD = [b"a\xff", b"a\x0bb", b"a\x0cb", b"a\rb", b"\x85", b"\x1c"]


@pytest.mark.parametrize("sid", [LISTENED, OTHER])
@pytest.mark.parametrize("odd", ODD)
async def test_a_subject_that_is_no_text_harms_nobody(sid: int, odd: bytes) -> None:
    """Whoever may publish may do so under any bytes: it is one message that nobody knows, and nobody's end."""
    client = Client()
    await client._ps.parse(b"MSG %b %d %b 2\r\nab\r\nMSG a %d 2\r\ncd\r\n" % (odd, sid, odd, sid))
    assert [said[3] for said in client.said] == [b"ab", b"cd"]


@pytest.mark.parametrize("head", [b"NATS/1.0", b"NATS/1.0 \xff\r\n\r\n", b"NATS/1.0\r\n\xff: 1\r\na: 2\r\n\r\n", b"x"])
async def test_a_head_that_is_none_harms_nobody(head: bytes) -> None:
    """The same for what stands above a message, also for those who hear of it in nats-py's own way."""
    headers = await ListeningClient()._process_headers(head)
    assert headers == ({"a": "2"} if b"a: 2" in head else {})
    assert await ListeningClient()._process_headers(b"") is None
    assert "_process_headers" in NatsClient._process_msg.__code__.co_names


async def test_a_large_message_is_looked_at_when_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes in many reads: what has come of it is not gone through again with each."""
    client = Client()
    size = 2**20
    stream = b"MSG a 1 %d\r\n" % size + b"x" * size + b"\r\n"
    looks = 0
    take = _Parser._take_messages

    async def counting(parser: _Parser) -> bool:
        nonlocal looks
        looks += 1
        return await take(parser)

    monkeypatch.setattr(_Parser, "_take_messages", counting)
    for at in range(0, len(stream), 2**15):
        await client._ps.parse(stream[at : at + 2**15])
    assert [len(each[3]) for each in client.said] == [size]
    assert looks == 2


MALFORMED = [
    *(b"MSG a 1", b"MSG a b 3", b"MSG a 1 -15", b"MSG a 1 +3", b"MSG a 1 1_0", b"MSG a 1 x", b"MSG a 1 b c d e f"),
    *(b"HMSG a 1 3", b"HMSG a 1 3 2", b"HMSG a 1 -3 2", b"MSGx a 1 2", b"HMSGx a 1 2 3", b"NEWS"),
]


@pytest.mark.parametrize("line", MALFORMED, ids=bytes.decode)
async def test_what_is_no_protocol_is_refused(line: bytes) -> None:
    """The connection is given up for it, and made anew: where the next message begins is not known."""
    with pytest.raises(ProtocolError):
        await Client()._ps.parse(line + b"\r\n")


async def test_what_was_left_of_a_connection_is_not_the_next_ones() -> None:
    """A connection that breaks in the middle of a message leaves nothing to the one that takes its place."""
    client = Client()
    await client._ps.parse(b"MSG a 1 100\r\nab")
    client._ps.reset()
    await client._ps.parse(b"MSG a 1 2\r\nab\r\n")
    assert [each[3] for each in client.said] == [b"ab"]


async def test_a_reset_while_something_is_told_leaves_nothing() -> None:
    """What stood behind a line that nats-py took its time over is the old connection's too."""

    class Resetting(Client):
        async def _process_ping(self) -> None:
            self._ps.reset()

    client = Resetting()
    await client._ps.parse(b"PING\r\nMSG a 1 2\r\nab\r\n")
    assert not client._ps.buf
    await client._ps.parse(b"MSG a 1 2\r\ncd\r\n")
    assert [each[3] for each in client.said] == [b"cd"]
