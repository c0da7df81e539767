"""What may be wrong with NATS, looked for as one of runstream's roles: findings, each with what to do about it.

Nothing is changed. What a role may write is tried with a condition that no message can meet, so that nothing is stored,
but for one key of the index that every broker writes, and that is swept.
"""

from __future__ import annotations

import statistics
import time
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from runstream.broker.connection import Connection
from runstream.broker.errors import (
    BrokerError,
    NoResponders,
    NotStored,
    Refused,
    StoreFull,
    StoreRefused,
    Unavailable,
    WrongLastSequence,
)
from runstream.broker.index import Index
from runstream.broker.jetstream import EXPECTED_LAST_SEQUENCE, JetStream
from runstream.broker.keys import pulse_key, subject_of
from runstream.broker.settings import without_password
from runstream.broker.topology import INDEX_STREAM, check_server, plan_streams, plan_workers, streams_of
from runstream.gateway.commands.telling import outage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from runstream.broker.settings import BrokerSettings

__all__ = ["Finding", "Role", "diagnose"]

Role: TypeAlias = Literal["provision", "broker", "gateway", "writer"]
State: TypeAlias = Literal["fine", "problem", "unknown"]

CLOCK_SECONDS: Final = 2.0
"""How far two clocks may be apart: tokens stand ten seconds longer than they say, and a run's times are of several."""
SLOW_SECONDS: Final = 0.1
"""What storing one message may take: an agent that says ten chunks a second would fall behind."""
FULL_SHARE: Final = 0.85
"""A share of a limit above which an operator is to make room before it is reached."""
TRIES: Final = 5
IMPOSSIBLE: Final = str(2**62)
DOCTOR: Final = "doctor"
ALLOW: Final = "Allow it to this user of NATS: deploy/nats/nats-server.conf has what each role needs. Or see --role."

_ENTRIES: Final = ("run", "request", "lease", "claim", "otid", "conversation", "agent", "approval")
WRITES: Final[Mapping[Role, tuple[str, ...]]] = {
    "gateway": (
        "runs.0.doctor",
        "work.doctor.doctor",
        *(subject_of(f"{each}.doctor") for each in (*_ENTRIES, "ticket")),
    ),
    "broker": ("runs.0.doctor", "work.doctor.doctor", subject_of(pulse_key(DOCTOR))),
    "writer": ("runs.0.doctor", *(subject_of(f"{each}.doctor") for each in _ENTRIES)),
    "provision": tuple(subject_of(f"{each}.doctor") for each in _ENTRIES if each != "request"),
}
"""What each role writes, with the names that nothing has."""
HEARS: Final[Mapping[Role, tuple[str, ...]]] = {
    "gateway": ("live.>", "index.run.*.*", "stuck.*", "credentials.*"),
    "broker": ("index.lease.*", "index.cancel.*", "index.pulse.*", "brokers.with-agent"),
    "writer": ("index.cancel.*",),
    "provision": (),
}
ASKS: Final[Mapping[str, bytes]] = {
    f"STREAM.INFO.{INDEX_STREAM}": b"",
    f"STREAM.MSG.GET.{INDEX_STREAM}": msgspec.json.encode({"last_by_subj": subject_of("run.doctor.doctor")}),
}
"""What every role asks of JetStream."""


class Finding(msgspec.Struct, frozen=True):
    """What one check came to; of a problem, what to do about it."""

    check: str
    state: State
    says: str
    do: str = ""


async def diagnose(settings: BrokerSettings, role: Role) -> AsyncIterator[Finding]:
    """Yield what each check comes to, in an order in which the first problem is the one to mend first."""
    was_let_in = False
    try:
        async with _connected(settings, role) as jetstream:
            was_let_in = True
            yield Finding("nats", "fine", f"{without_password(settings.nats_url)} answers")
            async for finding in _checked(jetstream, settings, role):
                yield finding
    except Unavailable as error:
        says, do = outage(error)
        if was_let_in:
            do = "Repeat it; `nats server report jetstream` shows streams that have no leader"
        yield Finding("jetstream" if was_let_in else "nats", "problem", f"{says}.", f"{do}.")


@asynccontextmanager
async def _connected(settings: BrokerSettings, role: Role) -> AsyncIterator[JetStream]:
    access = settings.nats_access(role)
    async with Connection(settings.nats_url, name="doctor", access=access) as connection:
        jetstream = JetStream(connection, timeout_seconds=settings.request_timeout_seconds)
        try:
            yield jetstream
        finally:
            await jetstream.close()


async def _checked(jetstream: JetStream, settings: BrokerSettings, role: Role) -> AsyncIterator[Finding]:
    yield _version(jetstream)
    try:
        info = await _index_info(jetstream)
    except Unavailable as error:
        says, do = outage(error)
        yield Finding("jetstream", "problem", f"{says}.", ALLOW if isinstance(error, Refused) else f"{do}.")
        return
    yield await _permissions(jetstream, role, has_streams=info is not None)
    async for finding in _drift(jetstream, settings):
        yield finding
    if info is None:
        yield Finding("storage", "unknown", "There are no streams to look at.")
        return
    yield _clock(*info)
    for finding in [*await _storage(jetstream, settings), await _latency(jetstream)]:
        yield finding


def _version(jetstream: JetStream) -> Finding:
    version = ".".join(map(str, jetstream.connection.server_version))
    try:
        check_server(jetstream.connection.server_version)
    except BrokerError as error:
        return Finding("version", "problem", str(error), "Upgrade nats-server.")
    return Finding("version", "fine", f"nats-server {version}")


async def _index_info(jetstream: JetStream) -> tuple[dict[str, Any], float, float] | None:
    """Ask for the index, and when that was; None: it is not there."""
    before = time.time()
    try:
        info = await jetstream.api(f"STREAM.INFO.{INDEX_STREAM}", None)
    except NotStored:
        return None
    return info, before, time.time()


async def _permissions(jetstream: JetStream, role: Role, *, has_streams: bool) -> Finding:
    refused: list[str] = []
    for call, body in ASKS.items():
        try:
            await jetstream.connection.request(f"$JS.API.{call}", body, seconds=2)
        except Refused:
            refused.append(f"publish $JS.API.{call}")
    for subject in WRITES[role] if has_streams else ():
        try:
            await jetstream.publish(subject, b"{}", {EXPECTED_LAST_SEQUENCE: IMPOSSIBLE})
        except Refused:
            refused.append(f"publish {subject}")
        except (WrongLastSequence, StoreFull):
            continue  # It may: that it was not stored is as it should be.
        except NoResponders:
            continue  # Its stream is absent, which is a finding of its own.
    for subject in HEARS[role]:
        subscription = await jetstream.connection.subscribe(subject, _nothing)
        # An answer, whatever it says, comes after a refusal would have.
        await jetstream.connection.request("$JS.API.STREAM.INFO.KV_RUNSTREAM", b"", seconds=2)
        if jetstream.connection.is_deaf:
            refused.append(f"subscribe {subject}")
        await subscription.close()
    if refused:
        return Finding("permissions", "problem", f"As {role} it may not {', '.join(refused)}.", ALLOW)
    return Finding("permissions", "fine", f"as {role} it may do what that takes")


async def _nothing(_: object) -> None:
    """Hear, and do nothing."""


async def _drift(jetstream: JetStream, settings: BrokerSettings) -> AsyncIterator[Finding]:
    plan = await plan_streams(jetstream, settings)
    try:
        workers = await plan_workers(jetstream, settings)
        plan.absent += workers.absent
        plan.differing += workers.differing
    except Refused:
        yield Finding("work queue", "unknown", "This role may not look at its consumer; see --role provision.")
    for name in plan.absent:
        yield Finding(
            "streams", "problem", f"{name} is absent.", "`runstream provision` makes it, and so does a broker."
        )
    for difference in plan.differing:
        do = "Set what is meant for all processes alike; `runstream provision --apply` then changes the stream."
        yield Finding("configuration", "problem", f"{difference}.", do)
    if not plan.absent and not plan.differing:
        yield Finding("configuration", "fine", "the streams are as this configuration says")


def _clock(info: dict[str, Any], before: float, after: float) -> Finding:
    if "ts" not in info:
        return Finding("clock", "unknown", "This nats-server does not tell its time.")
    ahead = datetime.fromisoformat(info["ts"]).timestamp() - (before + after) / 2
    # What the answer took is not known to either side.
    if abs(ahead) > CLOCK_SECONDS + (after - before):
        says = f"The clock of nats-server is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's."
        return Finding(
            "clock", "problem", says, "Have both keep time by NTP: times of runs, and of tokens, depend on it."
        )
    apart = abs(ahead) + (after - before) / 2
    return Finding("clock", "fine", f"{apart * 1000:.0f} ms from nats-server's, at most")


async def _storage(jetstream: JetStream, settings: BrokerSettings) -> list[Finding]:
    found: list[Finding] = []
    for name in streams_of(settings):
        try:
            info = await jetstream.api(f"STREAM.INFO.{name}", None)
        except NotStored:
            continue  # Told already.
        used, most = info["state"]["bytes"], info["config"]["max_bytes"]
        if most > 0 and used > FULL_SHARE * most:
            do = "Raise RUNSTREAM_MAX_LOG_BYTES or shorten RUNSTREAM_RETENTION, then `runstream provision --apply`."
            found.append(Finding("storage", "problem", f"{name} holds {used} of the {most} bytes it may.", do))
        lagging = [each["name"] for each in info.get("cluster", {}).get("replicas") or [] if not each.get("current")]
        if lagging:
            do = "Start these servers, or wait until they have caught up; see `nats stream info`."
            found.append(Finding("replicas", "problem", f"{name} is behind on {', '.join(lagging)}.", do))
    found += await _account(jetstream)
    found += await _room(jetstream)
    return found or [Finding("storage", "fine", "no stream is near its limit, and all replicas are there")]


async def _account(jetstream: JetStream) -> list[Finding]:
    """Look at the account's limits, which runstream's own roles need not, and may not."""
    try:
        account = await jetstream.api("INFO", None)
    except BrokerError:
        return []
    used, most = account["storage"], account["limits"]["max_storage"]
    if most <= 0 or used <= FULL_SHARE * most:
        return []
    do = "Raise the account's limit at nats-server, or shorten RUNSTREAM_RETENTION."
    return [Finding("storage", "problem", f"The account holds {used} of the {most} bytes it may.", do)]


async def _room(jetstream: JetStream) -> list[Finding]:
    """Write what only a broker may, to see whether there is room; nothing is said for who may not."""
    try:
        # By itself first: the index would go on trying what it may not.
        await jetstream.publish(subject_of(pulse_key(DOCTOR)), b"", {})
        await Index(jetstream).pulse(DOCTOR)
    except StoreFull as error:
        do = "Make room: raise the limit, remove runs, or shorten RUNSTREAM_RETENTION. Runs wait until then."
        return [Finding("storage", "problem", f"Nothing more is stored: {error}", do)]
    except (Refused, StoreRefused):
        return []
    return []


async def _latency(jetstream: JetStream) -> Finding:
    """Store a few messages where a broker shows that it can write, or, as another role, have them refused."""
    took: list[float] = []
    subject, headers, what = subject_of(pulse_key(DOCTOR)), dict[str, str](), "storing a message"
    while len(took) < TRIES:
        began = time.perf_counter()
        try:
            await jetstream.publish(subject, b"", headers)
        except Refused:
            if headers:
                return Finding("latency", "unknown", "This role may write nothing that could be timed.")
            subject, headers, what = "runs.0.doctor", {EXPECTED_LAST_SEQUENCE: IMPOSSIBLE}, "having a write refused"
            continue
        except NoResponders:
            return Finding("latency", "unknown", "There is no log in which a write could be timed.")
        except (WrongLastSequence, StoreFull):
            pass  # An answer all the same.
        took.append(time.perf_counter() - began)
    median = statistics.median(took)
    if median > SLOW_SECONDS:
        do = "Look at the disk of nats-server and at the way there; chunks are stored one after the other."
        return Finding("latency", "problem", f"{what.capitalize()} takes {median * 1000:.0f} ms.", do)
    return Finding("latency", "fine", f"{what} takes {median * 1000:.1f} ms")
