"""Writers of one run, through the library, over HTTP at any broker, or by asking an agent: they record what they do."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from uuid import UUID
from zlib import crc32

import aiohttp
import msgspec

from runstream.broker.errors import BrokerError
from runstream.broker.runs import Run, Runs
from runstream.schemas import AssistantMessage, new_agent_id
from tests.chaos.agent import Asked
from tests.chaos.content import digest_of
from tests.chaos.follower import Follower, Gateway, Response
from tests.chaos.history import (
    OUT_OF_PATIENCE,
    Cancelling,
    Ended,
    Ending,
    GaveUp,
    Opened,
    Opening,
    Recorder,
    Refused,
    Said,
    Stored,
    now,
)
from tests.chaos.plans import Broker, Plan

REQUEST_SECONDS = 5.0
"""How long an answer may take before its request is sent again, elsewhere: a connection may be half open."""
PAUSE_SECONDS = 0.2
SIGN_SECONDS = 0.5
"""Between two signs of life of an ingested run: a lease is two seconds or more."""


class Writing:
    """What all runs of a writing process share."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        recorder: Recorder,
        reading: Recorder,
        chance: random.Random,
        *,
        name: str,
        brokers: Sequence[Broker],
        gateways: Sequence[Gateway],
        runs: Runs | None = None,
    ) -> None:
        self.name = name
        self.session, self.recorder, self.reading, self.chance = session, recorder, reading, chance
        self.brokers, self.gateways, self.runs = brokers, gateways, runs
        self._cancels: set[asyncio.Task[None]] = set()

    async def write(self, plan: Plan) -> None:
        """Write a run as it is planned, or as far as it goes."""
        self.recorder.write(Opening(at=now(), token=plan.token, mode=plan.mode, background=plan.background))
        try:
            if plan.mode == "library":
                assert self.runs is not None
                await LibraryWriter(self, plan, self.runs).write()
            elif plan.mode == "ingest":
                await IngestWriter(self, plan).write()
            else:
                await CaptureWriter(self, plan).write()
        except asyncio.CancelledError:
            self.recorder.write(GaveUp(at=now(), token=plan.token, why=OUT_OF_PATIENCE, place=self.name))
            raise

    def cancel_soon(self, plan: Plan, agent_id: str, run_id: str) -> None:
        """Have somebody cancel the run, by any gateway."""
        self.recorder.write(Cancelling(at=now(), token=plan.token))
        task = asyncio.create_task(self._cancel(agent_id, run_id), name=f"cancel-{plan.token}")
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)

    async def _cancel(self, agent_id: str, run_id: str) -> None:
        for _ in range(3):
            url = f"{self.chance.choice(self.gateways).url}/v1/agents/{agent_id}/messages/cancel"
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with asyncio.timeout(REQUEST_SECONDS):
                    async with self.session.post(url, json={"run_ids": [run_id]}) as answer:
                        if answer.status == 200:
                            return
            await asyncio.sleep(PAUSE_SECONDS)


class _Writer:
    """What the three have in common."""

    def __init__(self, writing: Writing, plan: Plan) -> None:
        self.plan = plan
        self.writing = writing
        self.recorder = writing.recorder
        self.agent_id = new_agent_id()
        self.run_id = ""
        self._is_cancelled = False

    def opened(self, run_id: str) -> None:
        """Tell readers that it is there."""
        self.run_id = run_id
        self.recorder.write(Opened(at=now(), token=self.plan.token, run_id=run_id, background=self.plan.background))

    def say(self, index: int, texts: Sequence[str]) -> float:
        """Note what is about to be sent; returns when it was."""
        sent = now()
        self.recorder.write(Said(at=sent, token=self.plan.token, index=index, digests=list(map(digest_of, texts))))
        return sent

    def stored(self, index: int, count: int, sent: float, last_seq: int | None) -> None:
        """Note what was acknowledged."""
        self.recorder.write(
            Stored(at=now(), token=self.plan.token, index=index, count=count, sent=sent, last_seq=last_seq)
        )

    def ending(self) -> None:
        """Note that all has been said."""
        self.recorder.write(Ending(at=now(), token=self.plan.token, stop_reason="end_turn"))

    def ended(self) -> None:
        """Note that its end was acknowledged."""
        self.recorder.write(Ended(at=now(), token=self.plan.token, stop_reason="end_turn"))

    def gave_up(self, why: str, place: str, since: float | None = None) -> None:
        """Note why it is written no more."""
        self.recorder.write(GaveUp(at=now(), token=self.plan.token, why=why, place=place, since=since))

    def cancel_if_due(self, index: int) -> None:
        """Have it cancelled, if that is planned."""
        due = self.plan.cancel_at
        if due is not None and index >= due and not self._is_cancelled:
            self._is_cancelled = True
            self.writing.cancel_soon(self.plan, self.agent_id, self.run_id)


class LibraryWriter(_Writer):
    """Writes through `Runs`, in this process."""

    def __init__(self, writing: Writing, plan: Plan, runs: Runs) -> None:
        super().__init__(writing, plan)
        self._runs = runs

    async def write(self) -> None:
        """Open the run, say all, end it."""
        try:
            async with self._runs.open(agent_id=self.agent_id, background=self.plan.background) as run:
                self.opened(run.run_id)
                for first in range(0, self.plan.count, self.plan.at_once):
                    await self._publish(run, first)
                    self.cancel_if_due(first + self.plan.at_once)
                    await asyncio.sleep(self.plan.interval)
                self.ending()
            self.ended()
        except BrokerError as error:
            self.gave_up(type(error).__name__, "nats")

    async def _publish(self, run: Run, first: int) -> None:
        texts = self.plan.texts(first, self.plan.at_once)
        sent = self.say(first, texts)

        async def publish(index: int, text: str) -> None:
            seq = await run.publish(AssistantMessage(content=text))
            self.stored(index, 1, sent, seq)

        outcomes = await asyncio.gather(
            *(publish(first + at, text) for at, text in enumerate(texts)), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome


class _Stopped(Exception):
    """The run is written no more; the record says why."""


class IngestWriter(_Writer):
    """Writes over HTTP. Whatever comes of a request, the next goes to any broker, and says the same again."""

    def __init__(self, writing: Writing, plan: Plan) -> None:
        super().__init__(writing, plan)
        self._stored = 0
        self._first_sent = 0.0

    async def write(self) -> None:
        """Open the run, say all, end it."""
        with contextlib.suppress(_Stopped):
            await self._open()
            signs = asyncio.create_task(self._give_signs(), name=f"signs-{self.plan.token}")
            try:
                while self._stored < self.plan.count:
                    await (self._upload() if self.plan.is_upload else self._append())
                    self.cancel_if_due(self._stored)
                    await asyncio.sleep(self.plan.interval)
                self.ending()
                await self._ask("end", json={"stop_reason": "end_turn"}, headers=self._expected(self.plan.count))
                self.ended()
            finally:
                signs.cancel()
                await asyncio.gather(signs, return_exceptions=True)

    async def _open(self) -> None:
        body = {"agent_id": self.agent_id, "otids": [self.plan.token], "background": self.plan.background}
        self.opened((await self._ask("", json=body))["run_id"])

    async def _append(self) -> None:
        """Send what is next; now and then, as one who does not know what is stored, some chunks before it, too."""
        again = self.writing.chance.choice([0, 0, 0, 3])
        first = max(self._stored - again, 0)
        texts = self.plan.texts(first, self.plan.at_once + again)
        sent = self.say(first, texts)
        chunks = [self._chunk(first + at, text) for at, text in enumerate(texts)]
        body = chunks[0] if len(chunks) == 1 else chunks
        self._note(first, sent, await self._ask("chunks", json=body, headers=self._expected(first)))

    async def _upload(self) -> None:
        """Send what is left as the lines of one request; if it ends before, find out how far it came, and go on."""
        first, sent = self._stored, now()
        headers = {**self._expected(first), "Content-Type": "application/x-ndjson"}
        silence = aiohttp.ClientTimeout(
            total=(self.plan.count - first) * self.plan.interval + 2 * REQUEST_SECONDS, sock_connect=REQUEST_SECONDS
        )
        try:
            answer = await self._ask_once("chunks", data=self._lines(first), headers=headers, timeout=silence)
        except _Again:
            answer = None
        if answer is None:
            answer = await self._ask("chunks", json=[])
        self._note(first, sent, answer)

    async def _lines(self, first: int) -> AsyncIterator[bytes]:
        for index in range(first, self.plan.count, self.plan.at_once):
            texts = self.plan.texts(index, self.plan.at_once)
            self.say(index, texts)
            chunks = (self._chunk(index + at, text) for at, text in enumerate(texts))
            yield b"".join(msgspec.json.encode(chunk) + b"\n" for chunk in chunks)
            self.cancel_if_due(index + self.plan.at_once)
            await asyncio.sleep(self.plan.interval)

    def _note(self, first: int, sent: float, answer: Mapping[str, Any]) -> None:
        """Note what the answer acknowledges: all before `index`, whoever's request has stored it."""
        index = int(answer["index"])
        if index > first:
            self.stored(first, index - first, sent, answer["last_seq_id"])
        self._stored = index

    async def _give_signs(self) -> None:
        while True:
            await asyncio.sleep(SIGN_SECONDS)
            with contextlib.suppress(_Again, _Stopped):
                await self._ask_once("lease")

    async def _ask(self, what: str, **request: Any) -> Mapping[str, Any]:
        """Make a request until it is answered. Raises `_Stopped`."""
        while True:
            try:
                return await self._ask_once(what, **request)
            except _Again:
                await asyncio.sleep(PAUSE_SECONDS * self.writing.chance.uniform(0.5, 1.5))

    async def _ask_once(self, what: str, **request: Any) -> Mapping[str, Any]:
        """Make a request to any broker. Raises `_Again` if it may be made again, `_Stopped` if nothing more may."""
        broker = self.writing.chance.choice(self.writing.brokers)
        path = f"/{self.run_id}/{what}" if what else ""
        since = now()
        given = {"timeout": aiohttp.ClientTimeout(total=REQUEST_SECONDS), **request}
        try:
            async with self.writing.session.post(f"{broker.url}/ingest/v1/runs{path}", **given) as response:
                answer: Mapping[str, Any] = await response.json(content_type=None)
        except aiohttp.ClientConnectorError:
            why = "unreachable"
        except TimeoutError:
            why = "timeout"
        except (aiohttp.ClientError, OSError, ValueError):
            why = "cut"
        else:
            if response.status < 300:
                return answer
            why = str(answer.get("error_type", response.status))
            if why == "conflict" and answer.get("is_repeated"):
                return answer
        if what == "lease":
            raise _Again  # Whether it is alive it hears of when it says something.
        self._refused(why, broker, since)
        raise _Again

    def _refused(self, why: str, broker: Broker, since: float) -> None:
        """Note a refusal. Raises `_Stopped` if it is for good."""
        if why not in _PASSING:
            self.gave_up(why, broker.name, since)
            raise _Stopped
        self.recorder.write(Refused(at=now(), token=self.plan.token, why=why, place=broker.name, since=since))

    def _chunk(self, index: int, text: str) -> dict[str, object]:
        """Make a chunk, the same whenever it is made."""
        number = UUID(int=crc32(self.plan.token.encode()) << 64 | index, version=4)
        return {"message_type": "assistant_message", "id": f"message-{number}", "content": text}

    def _expected(self, index: int) -> dict[str, str]:
        return {"Expected-Index": str(index)}


class _Again(Exception):
    """The request was not answered, or refused for the moment."""


_PASSING = frozenset(
    {"unreachable", "timeout", "cut", "fenced", "too_slow", "store_unavailable", "unsettled", "broker_busy"}
    | {"broker_stopping", "store_full"}
)


class CaptureWriter(_Writer):
    """Asks an agent, and reads its answer; the run is the broker's to write."""

    async def write(self) -> None:
        """Ask, and read to the end, or as far as a foreground run can be read."""
        plan = self.plan
        self.say(0, plan.texts(0, plan.count))
        follower = Follower(
            self.writing.session,
            self.writing.reading,
            self.writing.gateways,
            self.writing.chance,
            name=f"{self.writing.name}-{plan.token}",
            token=plan.token,
            background=plan.background,
            opening=self._ask,
            on_run=self._begin,
        )
        await follower.follow()

    def _begin(self, run_id: str) -> None:
        self.opened(run_id)
        if self.plan.cancel_at is not None:
            delay = self.plan.cancel_at * self.plan.interval
            asyncio.get_running_loop().call_later(delay, self.cancel_if_due, self.plan.cancel_at)

    def _ask(self, gateway: Gateway) -> Response:
        plan = self.plan
        asked = Asked(plan.token, plan.count, plan.interval, plan.padding)
        message = {"role": "user", "content": msgspec.json.encode(asked).decode(), "otid": plan.token}
        return self.writing.session.post(
            f"{gateway.url}/v1/agents/{self.agent_id}/messages/stream",
            json={"background": plan.background, "messages": [message]},
        )
