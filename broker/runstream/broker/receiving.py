"""How messages leave nats-py: to a listener all that came in one read, at once, with no queue and no task in between.

nats-py's own way is a queue and a task for each subscription, and a callback for each message. That is kept for whoever
has to wait in his callback. A run's live messages, and the answers to a long read, come many at a time and are only
taken: each cost more to be handed on than to be read, and whoever was handed them one by one did one by one what he
could have done for all of them. Nor are they read as nats-py reads them: it looks for each of eight commands in turn,
cuts each message off the front of what was read, and takes all of its headers apart.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.protocol.parser import Parser

from runstream.broker.headers import Headers
from runstream.broker.logs import get_logger
from runstream.broker.tasks import heeding_cancellation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nats.aio.subscription import Subscription

__all__ = ["Heard", "ListeningClient"]

log = get_logger(__name__)

NO_RESPONDERS = "503"
CRLF = b"\r\n"
HEADED = b"HMSG"
MESSAGES = (b"MSG", HEADED)
"""What a message begins with: without headers, and with them."""
ARGUMENTS = 6
"""Words of the longest first line: its name, subject, subscription, where to answer, and two sizes."""


class Heard(msgspec.Struct, gc=False):
    """A message as a listener gets it."""

    subject: str
    reply: str
    data: bytes
    headers: Headers | None


class ListeningClient(Client):
    """nats-py's client, which also has listeners."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = _Parser(self)
        self._listeners: dict[int, Callable[[list[Heard]], None]] = {}
        self._heard: dict[int, list[Heard]] = {}
        self._answers = ""
        """What the subjects of all answers begin with."""
        self._asked = 0
        self._unanswered: dict[str, asyncio.Future[Heard]] = {}

    async def ask(self, subject: str, body: bytes, headers: Mapping[str, str] | None) -> Heard:
        """Send a request and wait for its answer, without end: whoever asks has a time-out of his own.

        nats-py's `request` has a timer for each, two tasks' turns, and a subject made of random letters.
        """
        if not self._answers:
            await heeding_cancellation(self._listen_to_answers())
        self._asked += 1
        token = str(self._asked)
        answer: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()
        self._unanswered[token] = answer
        try:
            sent = None if headers is None else dict(headers)
            # A time-out that ran out while this waited to be written is not told again: the answer would have none.
            await heeding_cancellation(self.publish(subject, body, reply=f"{self._answers}{token}", headers=sent))
            message = await answer
        finally:
            del self._unanswered[token]
        if message.headers is not None and message.headers.status == NO_RESPONDERS:
            raise nats.errors.NoRespondersError
        return message

    async def _listen_to_answers(self) -> None:
        self._answers = f"{self.new_inbox()}."
        try:
            await self.listen(f"{self._answers}*", self._on_answers)
        except BaseException:
            self._answers = ""
            raise

    def _on_answers(self, messages: list[Heard]) -> None:
        for message in messages:
            answer = self._unanswered.get(message.subject[len(self._answers) :])
            if answer is not None and not answer.done():
                answer.set_result(message)

    async def listen(self, subject: str, hear: Callable[[list[Heard]], None]) -> Subscription:
        """Have `hear` called with the messages of `subject` that one read brought, in order. It must not block.

        It is called before any task that the same read woke.
        """
        # Known before the server is: it may answer while nats-py still waits for its own writing.
        sid = self._sid + 1
        self._listeners[sid] = hear
        try:
            return await self.subscribe(subject)
        except BaseException:
            self._remove_sub(sid)  # What the server sends all the same is dropped.
            raise

    def hand_on(self) -> None:
        """Give every listener what has come for it since the last time."""
        if not self._heard:
            return
        heard, self._heard = self._heard, {}
        for sid, messages in heard.items():
            hear = self._listeners.get(sid)
            if hear is None:
                continue  # It has been closed by one before it.
            try:
                hear(messages)
            except Exception:  # The connection is everybody's.
                log.exception("listener_crashed", subject=messages[0].subject)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._listeners.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    def hear(self, sid: int, subject: bytes, reply: bytes, headers: bytes, body: bytes) -> bool:
        """Keep a message for its listener until all are handed on; False if it is not a listener's."""
        if sid not in self._listeners:
            return False
        message = Heard(_text(subject), _text(reply), body, Headers(headers) if headers else None)
        held = self._heard.get(sid)
        if held is None:
            self._heard[sid] = [message]
        else:
            held.append(message)
        return True

    async def pass_on(self, sid: int, subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        """Give a message to whoever waits for it in nats-py's own way."""
        await self._process_msg(sid, _text(subject).encode(), _text(reply).encode(), body, headers)

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        return dict(Headers(headers)) if headers else None


class _Parser(Parser):
    """nats-py's parser, but that it cuts messages out by their lengths, and says when it has come to a read's end."""

    nc: ListeningClient

    def reset(self) -> None:
        super().reset()
        self._wanted = 1
        """Bytes that there have to be before it is worth a look: a large message comes in many reads."""

    async def parse(self, data: bytes = b"") -> Any:
        self.buf += data
        try:
            while len(self.buf) >= self._wanted:
                is_message = self.buf.startswith(MESSAGES)
                if not await (self._take_messages() if is_message else self._take_other()):
                    break
        finally:
            self.nc.hand_on()

    async def _take_messages(self) -> bool:
        """Take the messages that all begins with; False if the next is not whole yet. Raises `ProtocolError`."""
        read, at = bytes(self.buf), 0
        while read.startswith(MESSAGES, at):
            begin = read.find(CRLF, at) + len(CRLF)
            if begin < len(CRLF):
                return self._wait_for(1, at)
            sid, subject, reply, header_size, size = _arguments(read[at : begin - len(CRLF)])
            body, end = begin + header_size, begin + size
            if len(read) < end + len(CRLF):
                return self._wait_for(end + len(CRLF) - at, at)
            at = end + len(CRLF)
            if not self.nc.hear(sid, subject, reply, read[begin:body], read[body:end]):
                self._wait_for(1, at)  # First: what nats-py does with it may take time, and this be reset meanwhile.
                await self.nc.pass_on(sid, subject, reply, read[begin:body], read[body:end])
                return True
        self._wait_for(1, at)
        return True

    def _wait_for(self, wanted: int, at: int) -> bool:
        """Drop what was taken; what is left is of interest again with as many bytes as are `wanted`."""
        del self.buf[:at]
        self._wanted = wanted
        return False

    async def _take_other(self) -> bool:
        """Have nats-py take the line that all begins with; False if it is not whole, or none that it knows."""
        end = self.buf.find(CRLF) + len(CRLF)
        if end < len(CRLF):
            return False
        buffer, rest = self.buf, self.buf[end:]
        del buffer[end:]
        await super().parse()
        if self.buf is not buffer:
            return False  # It has been reset: what came before is another connection's.
        is_taken = not buffer
        buffer += rest
        return is_taken


def _text(raw: bytes) -> str:
    """Decode what may be no text: whoever may publish chooses it, and must not end everybody's connection with it."""
    return raw.decode("utf-8", "replace")


def _arguments(line: bytes) -> tuple[int, bytes, bytes, int, int]:
    """Read a message's first line: its subscription, subject, where to answer, the sizes of its headers and of all."""
    words = line.split(b" ")  # And at nothing else: all but spaces and tabs may stand in a subject.
    if b"" in words or b"\t" in line:
        words = line.replace(b"\t", b" ").split(b" ")
        words = [word for word in words if word]
    if words[0] != HEADED:
        words.insert(-1, b"0")
    if len(words) < ARGUMENTS:
        words.insert(3, b"")
    if len(words) == ARGUMENTS and words[0] in MESSAGES:
        _, subject, sid, reply, header_size, size = words
        if sid.isdigit() and header_size.isdigit() and size.isdigit() and int(header_size) <= int(size):
            return int(sid), subject, reply, int(header_size), int(size)
    raise nats.errors.ProtocolError("nats: malformed MSG")
