"""The work queue: run requests that wait for a worker, each held by one worker until it says that it is done.

A message names a run; what the run is asked stands in the index, written with the claim. A worker that dies stops
extending its hold, and after a lease the message goes to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import msgspec

from runstream.broker.answers import into
from runstream.broker.errors import Unavailable, WrongLastSequence
from runstream.broker.headers import NO_HEADERS
from runstream.broker.jetstream import EXPECTED_LAST_SEQUENCE
from runstream.broker.keys import is_token
from runstream.broker.log import traced
from runstream.broker.logs import get_logger
from runstream.broker.messages import deliveries, stream_sequence
from runstream.broker.topology import WORK_STREAM, WORKERS
from runstream.schemas import is_run_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from runstream.broker.answers import Answers
    from runstream.broker.connection import Connection, Message
    from runstream.broker.jetstream import JetStream
    from runstream.schemas import Trace

__all__ = ["Task", "WorkQueue"]

log = get_logger(__name__)

ENQUEUE_PATIENCE_SECONDS = 10.0
FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 1.0
MOST_PULLED = 64
PULL_SECONDS = 20.0
"""How long one pull waits on the server; a reconnect starts a new one at once."""
PULL_GRACE_SECONDS = 5.0
NO_LEADER_SECONDS = 0.2
"""Before a queue that nobody leads is asked again: not at full speed."""
FIRST_RETURN_SECONDS = 0.5
LONGEST_RETURN_SECONDS = 30.0
MOST_DOUBLINGS = 6
"""From the first delay to the longest: doubled on and on, it would be no number any more after a night."""


class _Work(msgspec.Struct):
    """The body of a message: which run is to be executed."""

    tenant: str
    run_id: str


def _place(message: Message) -> tuple[str, int]:
    """Give the subject and the sequence of a message of the queue."""
    return message.subject, stream_sequence(message.reply)


class Task:
    """One run request, held by this process until it is acknowledged or not extended for a lease."""

    def __init__(self, connection: Connection, message: Message) -> None:
        work = msgspec.json.decode(message.data, type=_Work)
        if not (is_run_id(work.run_id) and is_token(work.tenant)):
            raise msgspec.ValidationError("It names no run.")
        self.tenant = work.tenant
        self.run_id = work.run_id
        self._connection = connection
        self._reply = message.reply
        # `$JS.ACK.<stream>.<consumer>.<deliveries>.…`: how often it has been handed out.
        self.deliveries = deliveries(message.reply)

    async def extend(self) -> None:
        """Say that its worker is alive."""
        await self._connection.publish(self._reply, b"+WPI")

    async def done(self) -> None:
        """Take it off the queue. A lost acknowledgement brings it back, to a worker that finds the run ended."""
        await self._connection.publish(self._reply, b"+ACK")

    async def give_back(self, seconds: float | None = None) -> None:
        """Let another worker have it, after that long, or a delay that doubles each time it comes back."""
        if seconds is None:
            doubled = FIRST_RETURN_SECONDS * 2 ** min(self.deliveries - 1, MOST_DOUBLINGS)
            seconds = min(doubled, LONGEST_RETURN_SECONDS)
        delay = msgspec.json.encode({"delay": int(seconds * 1e9)})
        await self._connection.publish(self._reply, b"-NAK " + delay)


class WorkQueue:
    """Where gateways put run requests and workers take them."""

    def __init__(self, jetstream: JetStream) -> None:
        self._jetstream = jetstream

    async def hold_seconds(self) -> float:
        """Return how long a worker may be silent before its message goes to another, as the queue was made."""
        info = await self._jetstream.api(f"CONSUMER.INFO.{WORK_STREAM}.{WORKERS}", None)
        return float(info["config"]["ack_wait"]) / 1e9

    async def put(self, tenant: str, run_id: str, trace: Trace | None = None) -> bool:
        """Enqueue a run; False if it is on the queue already, waiting or in a worker's hands.

        `trace` is that of the request that the run answers. Raises `StoreFull`, `Unavailable`.
        """
        body = msgspec.json.encode(_Work(tenant, run_id))
        headers = {EXPECTED_LAST_SEQUENCE: "0", **traced(trace)}
        deadline, delay = time.monotonic() + ENQUEUE_PATIENCE_SECONDS, FIRST_RETRY_SECONDS
        while True:
            try:
                await self._jetstream.publish(f"work.{tenant}.{run_id}", body, headers)
            except WrongLastSequence:
                return False
            except Unavailable:
                if time.monotonic() + delay > deadline:
                    raise
                await asyncio.sleep(delay)
                delay = min(2 * delay, LONGEST_RETRY_SECONDS)
            else:
                return True

    async def tasks(self, free_slots: Callable[[], int], slot_freed: asyncio.Event) -> AsyncGenerator[Task]:
        """Yield tasks for ever, never more at a time than there are free slots. Close it (`aclosing`) to stop."""
        connection = self._jetstream.connection
        inbox = connection.new_inbox()
        queue: Answers = asyncio.Queue()
        subscription = await connection.listen(inbox, into(queue))
        # After a reconnect the server no longer knows the pull that is being waited for: None ends the waiting.
        unlisten = connection.on_reconnect(lambda: queue.put_nowait(None))
        try:
            while True:
                while not (free := free_slots()):
                    slot_freed.clear()
                    await slot_freed.wait()
                async for message in self._pull(inbox, queue, min(free, MOST_PULLED)):
                    try:
                        task = Task(connection, message)
                    except msgspec.MsgspecError as error:
                        # Nobody will ever be able to read it: off the queue with it, or it comes back for ever.
                        self._jetstream.findings.note("work", *_place(message), str(error))
                        await connection.publish(message.reply, b"+TERM")
                        continue
                    yield task
        finally:
            unlisten()
            await subscription.close()
            with contextlib.suppress(Unavailable):
                await self._give_back_unseen(inbox, queue)

    async def _give_back_unseen(self, inbox: str, queue: Answers) -> None:
        """Let others have at once what came and was not yielded; what is on its way now comes back after a lease."""
        while not queue.empty():
            message = queue.get_nowait()
            if message is not None and message.subject != inbox:
                await self._jetstream.connection.publish(message.reply, b"-NAK")

    async def _pull(self, inbox: str, queue: Answers, batch: int) -> AsyncIterator[Message]:
        """Ask for up to `batch` messages and yield those that come, until they have, or the pull has run out."""
        query = {"batch": batch, "expires": int(PULL_SECONDS * 1e9)}
        request = f"$JS.API.CONSUMER.MSG.NEXT.{WORK_STREAM}.{WORKERS}"
        connection = self._jetstream.connection
        try:
            await connection.publish(request, msgspec.json.encode(query), reply=inbox)
        except Unavailable as error:
            log.warning("work_queue_unreachable", error=str(error))
            await asyncio.sleep(LONGEST_RETRY_SECONDS)
            return
        received = 0
        with contextlib.suppress(TimeoutError):
            while received < batch:
                async with asyncio.timeout(PULL_SECONDS + PULL_GRACE_SECONDS):
                    message = await queue.get()
                if message is None:
                    return
                if message.subject == inbox:  # The server's own word: a message keeps its subject.
                    if (message.headers or NO_HEADERS).status not in {"404", "408"}:
                        await asyncio.sleep(NO_LEADER_SECONDS)
                    return
                received += 1
                yield message
