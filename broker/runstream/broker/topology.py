"""What exists in JetStream: the streams of the log, the index and the work queue; their subjects; provisioning.

    RUNS_<shard>          runs.<shard>.<run_id>       the log; republished, once stored, as live.<shard>.<run_id>
    KV_RUNSTREAM          $KV.RUNSTREAM.<key>         the index, a bucket (`keys.py`); republished as index.<key>
    RUNSTREAM_WORK        work.<tenant>.<run_id>      run requests that wait for a worker
    KV_RUNSTREAM_REVOKED  $KV.RUNSTREAM_REVOKED.<key> credentials that were revoked, a bucket: nothing in it is undone

`provision` creates what is absent, from any number of processes at once, and reports what differs; it never
changes or deletes a stream on its own, because two brokers with different settings would fight over it.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any
from zlib import crc32

import msgspec

from runstream.broker.errors import NotStored, ServerTooOld, StoreRefused, TopologyError
from runstream.broker.keys import BUCKET, REVOKED, live_subject, subject_of
from runstream.broker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from runstream.broker.jetstream import JetStream
    from runstream.broker.settings import BrokerSettings

__all__ = [
    "INDEX_STREAM",
    "REVOKED_STREAM",
    "SEQUENCES_PER_SHARD",
    "WORKERS",
    "WORK_STREAM",
    "Difference",
    "LogAddress",
    "Plan",
    "Provisioned",
    "check_loaded",
    "check_server",
    "log_streams",
    "plan_streams",
    "plan_workers",
    "provision",
    "shard_of",
    "shard_of_cursor",
    "streams_of",
    "written",
]

log = get_logger(__name__)

OLDEST_SERVER = (2, 12, 0)
"""Atomic batches came with 2.12; there is no second path for older servers."""

INDEX_STREAM = f"KV_{BUCKET}"
REVOKED_STREAM = f"KV_{REVOKED}"
WORK_STREAM = "RUNSTREAM_WORK"
WORKERS = "workers"

LOG_STREAM = re.compile(r"RUNS_(\d+)")
"""The name of a shard's stream."""
SEQUENCES_PER_SHARD = 2**50
"""Each shard numbers its messages in a range of its own, so that a cursor names its shard. Eight of them stay
below 2^53, the largest whole number a JavaScript client can hold."""
EPOCH_MILLISECONDS = 1_767_225_600_000
"""2026-01-01T00:00:00Z. A stream's first sequence counts from here in microseconds, so that a stream that was lost
and made again never issues a sequence that a client may still hold: 35 years until a shard's range is used up."""

NANOSECONDS = 1_000_000_000
MILLISECOND = 1_000_000
DURATIONS = frozenset({"max_age", "duplicate_window", "ack_wait"})
UNITS = (
    ("d", 86400 * NANOSECONDS),
    ("h", 3600 * NANOSECONDS),
    ("m", 60 * NANOSECONDS),
    ("s", NANOSECONDS),
    ("ms", MILLISECOND),
)
DUPLICATE_WINDOW_SECONDS = 10
"""Nothing here needs a duplicate window: what is written is written on a condition. It may not exceed `max_age`."""

MAKING_SECONDS = 20.0
"""How long making or changing a stream may take: on a busy disk it is seconds."""
NO_PEERS = 10005
"""What a server says that does not know of as many others as a stream is to have copies of."""
PEERS_SECONDS = 30.0
"""How long they are waited for: the servers of a cluster are started at one time, and with them whoever needs them."""
PEERS_AGAIN_SECONDS = 0.5
REMEDY = "Repair or remove the stream, then start again."
NOT_CLUSTERED = 10074
"""What a server says that is in no cluster, and is to keep more than one copy."""
NOT_CLUSTERED_REMEDY = "A server that is in no cluster keeps one copy: set RUNSTREAM_REPLICAS to 1."
ESSENTIAL = frozenset({"subjects", "storage", "retention", "republish", "allow_atomic", "discard_new_per_subject"})


class LogAddress(msgspec.Struct, frozen=True):
    """Where a run's log is: its stream, the subject it is stored under, the subject it is republished on."""

    run_id: str
    shard: int

    @property
    def stream(self) -> str:
        """The stream of the run's shard."""
        return f"RUNS_{self.shard}"

    @property
    def subject(self) -> str:
        """The subject the run's messages are stored under."""
        return f"runs.{self.shard}.{self.run_id}"

    @property
    def live_subject(self) -> str:
        """The subject the server republishes the run's messages on, once they are stored."""
        return f"live.{self.shard}.{self.run_id}"


class Difference(msgspec.Struct, frozen=True):
    """One field of a stream or consumer that is not as this configuration says."""

    where: str
    field: str
    found: Any
    wanted: Any

    def __str__(self) -> str:
        found, wanted = self._written(self.found), self._written(self.wanted)
        return f"{self.where}.{self.field} is {found}, this configuration says {wanted}"

    @property
    def change(self) -> str:
        """What was changed, once it was."""
        return f"{self.where}.{self.field} from {self._written(self.found)} to {self._written(self.wanted)}"

    def _written(self, value: Any) -> str:
        return written(self.field, value, repr)


class Plan(msgspec.Struct):
    """What provisioning would come to: the streams and consumers that are absent, and what differs."""

    absent: list[str] = msgspec.field(default_factory=list)
    differing: list[Difference] = msgspec.field(default_factory=list)


class Provisioned(msgspec.Struct):
    """What provisioning came to: the streams it made, and what it found to differ."""

    made: list[str] = msgspec.field(default_factory=list)
    differing: list[Difference] = msgspec.field(default_factory=list)


def written(field: str, value: Any, otherwise: Callable[[Any], str]) -> str:
    """Write a field's value: a duration, in nanoseconds, in the largest unit in which it is whole (7d, 24h, 1500ms)."""
    if field not in DURATIONS or not isinstance(value, int) or not value or value % MILLISECOND:
        return otherwise(value)
    # Days from two on: a day is 24h in every example.
    unit, size = next((unit, size) for unit, size in UNITS if not value % size and (unit != "d" or value > size))
    return f"{value // size}{unit}"


def shard_of(run_id: str, shards: int) -> int:
    """Choose a run's shard. Asked once, when the run is made: the record keeps the answer, so `shards` may change."""
    return crc32(run_id.encode()) % shards


def shard_of_cursor(cursor: int) -> int:
    """Name the shard whose range `cursor` lies in."""
    return cursor // SEQUENCES_PER_SHARD


def check_server(version: tuple[int, int, int]) -> None:
    """Raise `ServerTooOld` when nats-server lacks what runstream is built on."""
    if version < OLDEST_SERVER:
        found, needed = (".".join(map(str, numbers)) for numbers in (version, OLDEST_SERVER))
        raise ServerTooOld(f"This is nats-server {found}; runstream needs {needed} or newer.")


def streams_of(settings: BrokerSettings) -> list[str]:
    """Name all streams that there are to be."""
    return [stream["name"] for stream in _streams(settings)]


async def log_streams(jetstream: JetStream) -> list[int]:
    """Return the shards whose streams are there, those that an earlier configuration made included."""
    names = (await jetstream.api("STREAM.NAMES", {"subject": "runs.>"}))["streams"] or []
    found = (LOG_STREAM.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in found if match is not None)


async def provision(jetstream: JetStream, settings: BrokerSettings, *, apply: bool = False) -> Provisioned:
    """Create the streams and the work queue's consumer where they are absent; returns what it made and what differs.

    `apply` also changes what differs, for who owns the server. Safe in any number of processes at once. Raises
    `TopologyError` when a stream is there but cannot serve (its subjects, republishing or atomic batches differ),
    `Unavailable`.
    """
    done = Provisioned()
    for wanted in _streams(settings):
        found = await _ensure_stream(jetstream, wanted, done.made)
        differing = _difference(wanted, found)
        if differing and apply:
            await _update_stream(jetstream, wanted, found)
        else:
            _check_essential(differing)
        done.differing += differing
    done.differing += await _ensure_workers(jetstream, settings, apply=apply)
    if REVOKED_STREAM in done.made:
        await _tell_of_revocations(jetstream)
    return done


async def check_loaded(jetstream: JetStream, settings: BrokerSettings, stored: Mapping[str, Path]) -> None:
    """Raise `TopologyError` if a stream is absent whose messages are in a directory of the server's (`stored`).

    Provisioning would make an empty one in its place, and the server would remove what is in the directory. The runs of
    a shard that an earlier configuration made would be missing without a word.
    """
    for name in sorted(stored):
        if name not in streams_of(settings) and LOG_STREAM.fullmatch(name) is None:
            continue
        try:
            await jetstream.api(f"STREAM.INFO.{name}", None)
        except NotStored as error:
            raise TopologyError(
                f"nats-server could not load the stream {name}, whose messages are in {stored[name]}: its log says "
                "why. Nothing was made in its place. Mend what is in the way, restore the data directory from a "
                "backup, or move this stream's directory elsewhere to go on without what is in it."
            ) from error


async def plan_streams(jetstream: JetStream, settings: BrokerSettings) -> Plan:
    """Say what `provision` would make, and what differs; changes nothing. Raises `Unavailable`."""
    plan = Plan()
    for wanted in _streams(settings):
        try:
            found = (await jetstream.api(f"STREAM.INFO.{wanted['name']}", None))["config"]
        except NotStored:
            plan.absent.append(wanted["name"])
        else:
            plan.differing += _difference(wanted, found)
    return plan


async def plan_workers(jetstream: JetStream, settings: BrokerSettings) -> Plan:
    """Say the same of the work queue's consumer."""
    try:
        found = (await jetstream.api(f"CONSUMER.INFO.{WORK_STREAM}.{WORKERS}", None))["config"]
    except NotStored:
        return Plan([f"{WORK_STREAM} consumer {WORKERS}"])
    return Plan([], _workers_difference(_workers(settings), found))


def _streams(settings: BrokerSettings) -> Iterator[dict[str, Any]]:
    common = {
        "storage": "file",
        "num_replicas": settings.replicas,
        "discard": "new",
        "max_consumers": -1,
        "deny_delete": True,
    }
    for shard in range(settings.shards):
        yield {
            **common,
            "name": f"RUNS_{shard}",
            "subjects": [f"runs.{shard}.>"],
            "retention": "limits",
            "max_age": int(settings.retention * NANOSECONDS),
            "max_bytes": settings.max_log_bytes,
            "max_msgs_per_subject": settings.max_run_messages,
            "discard_new_per_subject": True,
            "compression": "s2",
            "duplicate_window": int(min(DUPLICATE_WINDOW_SECONDS, settings.retention) * NANOSECONDS),
            "allow_direct": True,
            "allow_atomic": True,
            "republish": {"src": f"runs.{shard}.>", "dest": f"live.{shard}.>"},
            "first_seq": shard * SEQUENCES_PER_SHARD + (time.time_ns() // 1_000_000 - EPOCH_MILLISECONDS) * 1000,
        }
    yield {
        **common,
        "name": INDEX_STREAM,
        "subjects": [subject_of(">")],
        "retention": "limits",
        "max_msgs_per_subject": 1,
        # Read from the leader only: a claim decided on what a lagging replica says would be decided twice.
        "allow_direct": False,
        "allow_atomic": True,
        # What the tools of NATS need to purge a key of a bucket.
        "allow_rollup_hdrs": True,
        "republish": {"src": subject_of(">"), "dest": live_subject(">")},
    }
    yield {
        **common,
        "name": WORK_STREAM,
        "subjects": ["work.>"],
        "retention": "workqueue",
        "max_age": int(settings.retention * NANOSECONDS),
        "duplicate_window": int(min(DUPLICATE_WINDOW_SECONDS, settings.retention) * NANOSECONDS),
    }
    yield {
        **common,
        "name": REVOKED_STREAM,
        "subjects": [subject_of(">", REVOKED)],
        "retention": "limits",
        "max_msgs_per_subject": 1,
        "allow_direct": False,
        # What was revoked stays so, whoever may write here: with neither deletes, purges nor roll-ups a key keeps one.
        "deny_purge": True,
    }


async def _ensure_stream(jetstream: JetStream, wanted: Mapping[str, Any], made: list[str]) -> dict[str, Any]:
    name = wanted["name"]
    try:
        info = await jetstream.api(f"STREAM.INFO.{name}", None)
    except NotStored:
        try:
            info = await _made_stream(jetstream, wanted)
            log.info("stream_created", stream=name, replicas=wanted["num_replicas"])
            made.append(name)
        except StoreRefused as refused:
            # Another process made it a moment ago, with another first sequence. Anything else fails here again.
            try:
                info = await jetstream.api(f"STREAM.INFO.{name}", None)
            except NotStored:
                remedy = f" {NOT_CLUSTERED_REMEDY}" if refused.code == NOT_CLUSTERED else ""
                raise TopologyError(f"Stream {name} cannot be created: {refused.detail}.{remedy}") from refused
    config: dict[str, Any] = info["config"]
    return config


async def _made_stream(jetstream: JetStream, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Make a stream, once there are as many servers as it is to have copies. Raises `StoreRefused`."""
    name, deadline, is_told = wanted["name"], time.monotonic() + PEERS_SECONDS, False
    while True:
        try:
            return await jetstream.api(f"STREAM.CREATE.{name}", wanted, seconds=MAKING_SECONDS)
        except StoreRefused as refused:
            if refused.code != NO_PEERS or time.monotonic() > deadline:
                raise
            if not is_told:
                log.warning("nats_servers_awaited", stream=name, replicas=wanted["num_replicas"], error=refused.detail)
            is_told = True
            await asyncio.sleep(PEERS_AGAIN_SECONDS)


async def _tell_of_revocations(jetstream: JetStream) -> None:
    """Say that nothing is revoked, where there may have been something: there are runs."""
    for shard in await log_streams(jetstream):
        if (await jetstream.api(f"STREAM.INFO.RUNS_{shard}", None))["state"]["messages"]:
            log.warning("revocations_begin_anew", stream=REVOKED_STREAM, remedy="Revoke again what was revoked before.")
            return


async def _update_stream(jetstream: JetStream, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    # The first sequence belongs to the stream's making; an update must repeat the one it has.
    config = {**found, **wanted, "first_seq": found.get("first_seq", 0)}
    try:
        await jetstream.api(f"STREAM.UPDATE.{wanted['name']}", config, seconds=MAKING_SECONDS)
    except StoreRefused as refused:
        remedy = NOT_CLUSTERED_REMEDY if refused.code == NOT_CLUSTERED else REMEDY
        raise TopologyError(f"Stream {wanted['name']} cannot be changed: {refused.detail}. {remedy}") from refused


def _difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[Difference]:
    """Say what differs."""
    return [
        Difference(wanted["name"], field, found.get(field), value)
        for field, value in wanted.items()
        if field not in {"first_seq", "max_consumers"} and found.get(field, _absent(value)) != value
    ]


def _check_essential(differing: Sequence[Difference]) -> None:
    """Raise `TopologyError` for a difference with which the stream could not serve."""
    fatal = [str(difference) for difference in differing if difference.field in ESSENTIAL]
    if fatal:
        raise TopologyError(f"{'; '.join(fatal)}. {REMEDY}")


def _absent(value: object) -> object:
    """Give the value that JetStream leaves out of its answer: false, 0, nothing."""
    return type(value)() if isinstance(value, (bool, int, str)) else None


def _workers(settings: BrokerSettings) -> dict[str, Any]:
    """Give the work queue's one consumer, which all workers pull from."""
    return {
        "durable_name": WORKERS,
        "ack_policy": "explicit",
        # A worker that died stops saying so, and its run request goes to another.
        "ack_wait": int(settings.lease_seconds * NANOSECONDS),
        "max_deliver": -1,
        "max_ack_pending": -1,
        "max_waiting": 2048,
        "deliver_policy": "all",
    }


async def _ensure_workers(jetstream: JetStream, settings: BrokerSettings, *, apply: bool) -> list[Difference]:
    """Make the work queue's consumer."""
    config = _workers(settings)
    call = f"CONSUMER.DURABLE.CREATE.{WORK_STREAM}.{WORKERS}"
    body = {"stream_name": WORK_STREAM, "config": config}
    try:
        found = (await jetstream.api(f"CONSUMER.INFO.{WORK_STREAM}.{WORKERS}", None))["config"]
    except NotStored:
        found = (await jetstream.api(call, body, seconds=MAKING_SECONDS))["config"]
    if apply:
        await jetstream.api(call, body)
    return _workers_difference(config, found)


def _workers_difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[Difference]:
    where = f"{WORK_STREAM} consumer {WORKERS}"
    return [
        Difference(where, field, found.get(field), value)
        for field, value in wanted.items()
        if found.get(field) != value
    ]
