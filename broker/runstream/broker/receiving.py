"""How messages leave nats-py: to a listener all that came in one read, at once, with no queue and no task in between.

nats-py's own way is a queue and a task for each subscription, and a callback for each message. That is kept for whoever
has to wait in his callback. A run's live messages, and the answers to a long read, come many at a time and are only
taken: each cost more to be handed on than to be read, and whoever was handed them one by one did one by one what he
could have done for all of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.aio.client import Client
from nats.protocol.parser import Parser

from runstream.broker.logs import get_logger
from runstream.broker.tasks import heeding_cancellation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nats.aio.subscription import Subscription

__all__ = ["Heard", "ListeningClient"]

log = get_logger(__name__)

NO_RESPONDERS = "503"
WHITE_SPACE = " \t\r\n\v\f"
"""What is no part of a header's name or value: ASCII only, a value may begin with any other."""


class Heard:
    """A message as a listener gets it."""

    __slots__ = ("data", "headers", "reply", "subject")

    def __init__(self, subject: str, reply: str, data: bytes, headers: dict[str, str] | None) -> None:
        self.subject = subject
        self.reply = reply
        self.data = data
        self.headers = headers


class ListeningClient(Client):
    """nats-py's client, which also has listeners, and reads headers faster.

    Its own reading takes a third of all that a message costs: it decodes each name and value apart, and looks for white
    space in every character of a name.
    """

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
        if message.headers is not None and message.headers.get("Status") == NO_RESPONDERS:
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

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if sid not in self._listeners:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        read = await self._process_headers(headers) if headers else None
        message = Heard(subject.decode(), reply.decode(), data, read)
        held = self._heard.get(sid)
        if held is None:
            self._heard[sid] = [message]
        else:
            held.append(message)

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        """Read `Name: Value` lines, as nats-py does; a line without a colon is passed over."""
        lines = raw.decode("utf-8", "replace").split("\r\n")
        pairs = [line.partition(":") for line in lines]
        return {name.strip(WHITE_SPACE): value.strip(WHITE_SPACE) for name, colon, value in pairs if colon}


class _Parser(Parser):
    """nats-py's parser, which says when it has come to the end of a read."""

    nc: ListeningClient

    async def parse(self, data: bytes = b"") -> Any:
        try:
            await super().parse(data)
        finally:
            self.nc.hand_on()
