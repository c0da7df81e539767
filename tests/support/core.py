"""The durable core on a nats-server that is there: one connection, and what the tests do with a log and the index."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from runstream.broker.connection import Connection
from runstream.broker.errors import BrokerError, Unavailable
from runstream.broker.index import Index
from runstream.broker.jetstream import JetStream
from runstream.broker.keys import subject_of
from runstream.broker.log import KIND, WRITER, Entry, entry_of, writer_header
from runstream.broker.messages import StoredMessage
from runstream.broker.publisher import Publisher, Write
from runstream.broker.reader import LogReader
from runstream.broker.settings import BrokerSettings
from runstream.broker.topology import INDEX_STREAM, WORK_STREAM, LogAddress, provision, shard_of
from runstream.schemas import AssistantMessage, Kind, RunRecord, RunRequest, new_agent_id, new_run_id
from tests.support.waiting import wait_until

SETTINGS: Mapping[str, Any] = {"silence_seconds": 0.3, "lease_seconds": 1.0}
"""Short where a test would otherwise wait for the product's patience."""

END = Write(Kind.END, b"")


@dataclass(frozen=True)
class Core:
    """One process's connection to NATS with everything on it, as brokers and gateways have it."""

    connection: Connection
    jetstream: JetStream
    settings: BrokerSettings
    reader: LogReader
    index: Index

    def address(self) -> LogAddress:
        """Where the log of a new run will be."""
        run_id = new_run_id()
        return LogAddress(run_id, shard_of(run_id, self.settings.shards))

    def publisher(self, address: LogAddress, jetstream: JetStream | None = None, **options: Any) -> Publisher:
        """A writer of that log; settings that are named differently apply to it alone."""
        settings = self.settings
        for name in set(options) & set(BrokerSettings.model_fields):
            settings = settings.model_copy(update={name: options.pop(name)})
        return Publisher(jetstream or self.jetstream, address, settings, **options)

    async def stored(self, address: LogAddress) -> list[StoredMessage]:
        """All the log holds, asked from the leader one by one: not by the ways the product reads."""
        found: list[StoredMessage] = []
        seq = 1
        while (message := await self.jetstream.first_message(address.stream, address.subject, seq=seq)) is not None:
            found.append(message)
            seq = message.seq + 1
        return found

    async def bodies(self, address: LogAddress) -> list[bytes]:
        """The bodies of all the log holds, in order, after a check that their indexes have no gap."""
        entries = [entry_of(message) for message in await self.stored(address)]
        assert [entry.index for entry in entries] == list(range(len(entries)))
        return [entry.body for entry in entries]

    async def write(self, address: LogAddress, bodies: Sequence[bytes], *, end: bool = False) -> list[int]:
        """Let a publisher write a whole log, with its end if asked; returns the sequences."""
        async with self.publisher(address) as publisher:
            seqs = [await publisher.publish(body) for body in bodies]
            if end:
                seqs.append(await publisher.publish_marked(END))
        return seqs

    async def fill(self, turns: Sequence[LogAddress]) -> dict[LogAddress, list[Entry]]:
        """Write one small chunk into each of `turns` in order, fast and without a writer; returns each log."""
        logs: dict[LogAddress, list[Entry]] = {address: [] for address in turns}
        seq = 0
        for turn, address in enumerate(turns, start=1):
            log = logs[address]
            headers = {KIND: Kind.DATA, WRITER: writer_header("test", len(log))}
            if turn in {1, len(turns)} or turn % 1000 == 0:
                # What is sent on one connection is stored in its order: the answers between are not needed.
                seq = await self.jetstream.publish(address.subject, chunk(len(log)), headers)
            else:
                await self.connection.publish(address.subject, chunk(len(log)), headers=headers)
                seq += 1
            log.append(Entry(seq, Kind.DATA, chunk(len(log)), len(log)))
        assert seq - next(iter(logs.values()))[0].seq == len(turns) - 1, "something else was stored in between"
        return logs

    async def purge_before(self, address: LogAddress, seq: int) -> None:
        """Remove all messages before `seq` from the log's stream, as retention does."""
        await self.jetstream.api(f"STREAM.PURGE.{address.stream}", {"seq": seq})

    async def purge(self, address: LogAddress) -> None:
        """Remove the whole log."""
        await self.jetstream.api(f"STREAM.PURGE.{address.stream}", {"filter": address.subject})

    async def consumers(self, stream: str = "RUNS_0") -> int:
        """How many consumers there are on a stream."""
        return int((await self.jetstream.api(f"STREAM.INFO.{stream}", None))["state"]["consumer_count"])

    async def no_consumers(self) -> None:
        """Wait until no consumer is left on the log's streams."""
        for shard in range(self.settings.shards):
            stream = f"RUNS_{shard}"

            async def none(stream: str = stream) -> bool:
                return await self.consumers(stream) == 0

            await wait_until(none, 5, f"a consumer is left on {stream}")

    async def queued(self) -> int:
        """How many run requests wait, or are being executed."""
        return int((await self.jetstream.api(f"STREAM.INFO.{WORK_STREAM}", None))["state"]["messages"])

    async def holds(self, key: str) -> bool:
        """Whether the index has a value for that key."""
        message = await self.jetstream.last_message(INDEX_STREAM, subject_of(key))
        return message is not None and "KV-Operation" not in message.headers

    async def record(self, run: RunRecord) -> RunRecord:
        """What the index says of a run now."""
        stored = await self.index.run(run.tenant, run.id)
        assert stored is not None, f"{run.id} is not in the index"
        return stored.value

    async def is_over(self, run: RunRecord) -> bool:
        """Whether the run's log has its end."""
        address = LogAddress(run.id, run.shard)
        last = await self.jetstream.last_message(address.stream, address.subject)
        return last is not None and entry_of(last).kind is Kind.END

    async def leader(self, stream: str) -> str:
        """The name of the server that leads a stream of a cluster; empty while there is none."""
        with contextlib.suppress(BrokerError):
            info = await self.jetstream.api(f"STREAM.INFO.{stream}", None)
            return str((info.get("cluster") or {}).get("leader", ""))
        return ""


@contextlib.asynccontextmanager
async def core_running(url: str, *, name: str = "test", **settings: Any) -> AsyncIterator[Core]:
    """A provisioned core; `url` may name several servers."""
    chosen = BrokerSettings(nats_url=url, **{**SETTINGS, **settings})
    async with Connection(url, name=name) as connection:
        jetstream = JetStream(connection, timeout_seconds=chosen.request_timeout_seconds)
        await wait_until(lambda: _provisioned(jetstream, chosen), 20, "the streams are not made")
        yield Core(connection, jetstream, chosen, LogReader(jetstream, chosen), Index(jetstream))
        with contextlib.suppress(Unavailable):
            await jetstream.close()


async def _provisioned(jetstream: JetStream, settings: BrokerSettings) -> bool:
    """Make the streams; False if the server takes too long, as several that wait for one disk do."""
    with contextlib.suppress(Unavailable):
        await provision(jetstream, settings)
        return True
    return False


def record_of(run_id: str | None = None, **facts: Any) -> RunRecord:
    """The record of a run that was just made; all that are made in one conversation are of one agent."""
    conversation_id = facts.get("conversation_id") or ""
    agent_id = f"agent-{conversation_id.removeprefix('conv-')}" if conversation_id else new_agent_id()
    known = {"agent_id": agent_id, "shard": 0, **facts}
    return RunRecord(id=run_id or new_run_id(), **known)


def request_of(record: RunRecord, said: str = "hello") -> RunRequest:
    """What the run's agent is asked."""
    return RunRequest(
        tenant=record.tenant,
        run_id=record.id,
        agent_id=record.agent_id,
        conversation_id=record.conversation_id,
        include_return_message_types=record.request_config.include_return_message_types,
        body={"input": said},
    )


def chunk(number: int, *, size: int = 0) -> bytes:
    """A chunk's body, padded to exactly `size` bytes where that is more."""
    if not size:
        return b'{"n":%d}' % number
    return b'{"n":%d,"pad":"' % number + b"." * (size - len(str(number)) - 15) + b'"}'


def texts(messages: Sequence[StoredMessage]) -> list[str]:
    """What the agent said, of a whole log."""
    data = [message.body for message in messages if message.headers[KIND] == Kind.DATA]
    return [str(msgspec.json.decode(body)["content"]) for body in data]


def kinds(messages: Sequence[StoredMessage]) -> list[str]:
    """How each message of a log goes out."""
    return [message.headers[KIND] for message in messages]


def said(number: int) -> AssistantMessage:
    """A scripted agent's chunk."""
    return AssistantMessage(content=str(number))
