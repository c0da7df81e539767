"""The readers of an EventSource's streams: one as strict as a test must be, one that does what a browser does."""

import asyncio
import codecs
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

import httpx

from runstream.broker.log import entry_of
from runstream.schemas import Kind
from tests.support.http import Event, EventStream, open_stream
from tests.support.stack import Stack

_RETRY = re.compile(rb"retry: (\d+)\n")
_EVENT = re.compile(r"(?:event: (?P<event>run_error)\n)?data: (?P<data>[^\n\r]+)(?:\nid: (?P<id>\d+))?")


def source_path(run_id: str, **query: Any) -> str:
    """Where a run's EventSource is; parameters that are None are not there."""
    given = {name: value for name, value in query.items() if value is not None}
    return f"/v1/runs/{run_id}/stream" + (f"?{urlencode(given)}" if given else "")


class SourceStream(EventStream):
    """A streaming response to an EventSource: its events may have ids, and `retry:` stands between them."""

    retry: int | None = None
    """Milliseconds after which to come back, as it was said last."""

    def parse(self, data: bytes) -> list[Event]:
        """Read whole events, or a `retry:` line by itself, or complain."""
        if line := _RETRY.fullmatch(data):
            self.retry = int(line[1])
            return []
        text = data.decode()
        assert text.endswith("\n\n"), f"half an event: {text[-80:]!r}"
        events = []
        for block in text.removesuffix("\n\n").split("\n\n"):
            found = _EVENT.fullmatch(block)
            assert found is not None, f"no event for an EventSource: {block!r}"
            events.append(Event(found["event"], found["data"], None if found["id"] is None else int(found["id"])))
        return events


class open_source(open_stream):  # noqa: N801  # as open_stream
    """Open an EventSource's stream, as a browser does but once. A server that refuses is an AssertionError."""

    method = "GET"
    stream_type = SourceStream

    def __init__(
        self,
        base: str,
        path: str,
        *,
        last_event_id: object = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        seen = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
        super().__init__(base, path, headers={**(headers or {}), **seen}, **options)

    async def __aenter__(self) -> SourceStream:
        stream = await super().__aenter__()
        assert isinstance(stream, SourceStream)
        return stream


async def told_of(stack: Stack, run_id: str) -> list[Event]:
    """What an EventSource has to be told of a run, read message by message from its log; the stored ping aside."""
    record = await stack.record(run_id)
    stream, subject = f"RUNS_{record.shard}", f"runs.{record.shard}.{record.id}"
    events: list[Event] = []
    seq = 1
    while (message := await stack.jetstream.first_message(stream, subject, seq=seq)) is not None:
        seq = message.seq + 1
        kind, body = entry_of(message).kind, message.body.decode()
        cursored = f'{body[:-1]},"seq_id":{message.seq}}}'
        match kind:
            case Kind.DATA:
                events.append(Event(None, cursored, message.seq))
            case Kind.ERROR:
                events.append(Event("run_error", cursored, message.seq))
            case Kind.PLAIN:
                events.append(Event(None, body, message.seq))
            case Kind.END:
                events.append(Event(None, "[DONE]", message.seq))
            case Kind.PING | Kind.ATTEMPT:
                pass
    return events


class Message(NamedTuple):
    """What a page is handed: the event's type, its data, and the last id that its EventSource has seen by then."""

    type: str
    data: str
    last_event_id: str


class SourceParser:
    """An event stream by the letter of the HTML standard, section 9.2.6, fed as the bytes come."""

    def __init__(self, last_event_id: str, reconnection_ms: int) -> None:
        self.last_event_id = last_event_id
        self.reconnection_ms = reconnection_ms
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        self._text = ""
        self._type, self._id = "", last_event_id
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Give the messages that these bytes complete."""
        self._text += self._decode(chunk)
        # A CR at the end may be half of a CRLF.
        while found := re.search(r"\r\n|\n|\r(?!\Z)", self._text):
            line, self._text = self._text[: found.start()], self._text[found.end() :]
            if line:
                self._field(*line.partition(":"))
            elif message := self._dispatch():
                yield message

    def _field(self, name: str, _: str, value: str) -> None:
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._type = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if re.fullmatch("[0-9]+", value):
                self.reconnection_ms = int(value)

    def _dispatch(self) -> Message | None:
        self.last_event_id = self._id
        kind, data = self._type or "message", "\n".join(self._data)
        has_data = bool(self._data)
        self._type, self._data = "", []
        return Message(kind, data, self._id) if has_data else None


class EventSource:
    """What a browser does with a URL: connects, reads, comes back after every loss with the last id, until refused."""

    def __init__(self, url: str, *, reconnection_ms: int = 50) -> None:
        self.url = url
        self.messages: list[Message] = []
        self.statuses: list[int] = []
        """What each connection that got so far was answered."""
        self.attempts = 0
        self.last_event_id = ""
        self.reconnection_ms = reconnection_ms

    async def run(self) -> None:
        """Be there until the server says that there is nothing more; a browser has no other end, either."""
        async with httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(10)) as client:
            while True:
                self.attempts += 1
                try:
                    async for message in self._connection(client):
                        self.messages.append(message)
                except httpx.TransportError:
                    pass
                if self.statuses and self.statuses[-1] != 200:
                    return
                await asyncio.sleep(self.reconnection_ms / 1000)

    async def _connection(self, client: httpx.AsyncClient) -> AsyncIterator[Message]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self.last_event_id:
            headers["Last-Event-ID"] = self.last_event_id
        async with client.stream("GET", self.url, headers=headers) as response:
            self.statuses.append(response.status_code)
            if response.status_code != 200:
                return
            assert response.headers["content-type"].startswith("text/event-stream")
            # Half an event is forgotten with its connection, its id and its data.
            parser = SourceParser(self.last_event_id, self.reconnection_ms)
            async for chunk in response.aiter_raw():
                for message in parser.feed(chunk):
                    yield message
                self.last_event_id, self.reconnection_ms = parser.last_event_id, parser.reconnection_ms
