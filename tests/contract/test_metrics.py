"""What a gateway and a broker show of themselves: all that is declared, nothing else, and what it means."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from deploy.observability.page import PAGE, page
from runstream.broker.agents.http_platform import Platform
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.auth.settings import AuthSettings
from runstream.broker.common_metrics import LIBRARY_METRICS
from runstream.broker.errors import InvalidSettings
from runstream.broker.meters import Metric
from runstream.broker.metrics import BROKER_METRICS
from runstream.broker.runs import Runs
from runstream.broker.service import Broker
from runstream.broker.settings import BrokerSettings, resolved
from runstream.broker.tail import SAMPLED
from runstream.gateway.app import Gateway
from runstream.gateway.metrics import GATEWAY_METRICS
from runstream.gateway.settings import GatewaySettings
from runstream.gateway.upstream import Upstream
from runstream.gateway.workers_metrics import WORKERS_METRICS
from runstream.schemas import AssistantMessage, Kind, new_agent_id, new_run_id
from tests.support.auth import AUDIENCE, ISSUER, SECRET, Client, Issuer
from tests.support.http import Cut, fetch
from tests.support.ingest import writer_of
from tests.support.nats import NatsServer
from tests.support.outages import stopped
from tests.support.stack import Puppet, Stack, listener, message, stack_running, url_of
from tests.support.waiting import wait_until

DECLARED = {
    "gateway": GATEWAY_METRICS,
    "workers": WORKERS_METRICS,
    "broker": BROKER_METRICS,
    "library": LIBRARY_METRICS,
}
TAIL_CHUNKS = 64
STORE = {"max_log_bytes": 100_000_000}
"""For all of them: whichever comes first makes the streams."""
UNITS = ("seconds", "bytes")


@pytest.fixture(scope="module")
def puppet() -> Puppet:
    """One for all: a run of the one runstream may be executed by the other, which is on the same NATS."""
    return Puppet()


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str, puppet: Puppet) -> AsyncIterator[Stack]:
    """A runstream that keeps little of a run in memory."""
    gateway = {"tail_chunks": TAIL_CHUNKS, "tail_fill_chunks": TAIL_CHUNKS // 2, "open_seconds": 2}
    async with stack_running(nats_url, agent=puppet, gateway=gateway, broker=STORE) as running:
        yield running


async def families(base: str) -> list[Family]:
    """What a port shows."""
    reply = await fetch(base, "GET", "/metrics")
    assert reply.status == 200, reply
    return list(text_string_to_metric_families(reply.body.decode()))


async def value(base: str, name: str, **labels: str) -> float:
    """A metric's value, over the labels that are not named."""
    samples = [sample for family in await families(base) for sample in family.samples if sample.name == name]
    assert samples, f"{name} is not shown"
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def fits(seen: str, values: Sequence[str]) -> bool:
    """Whether a label has a value that is declared."""
    return any(re.fullmatch(re.sub(r"<\w+>", r"[0-9]+", each), seen) for each in values)


def check(shown: Sequence[Family], declared: Sequence[Metric]) -> None:
    """What is shown is what is declared: names, types, help, labels, their values, and buckets."""
    assert [family.name for family in shown] == [metric.name for metric in declared]
    for family, metric in zip(shown, declared, strict=True):
        assert (family.type, family.documentation) == (metric.kind, metric.says)
        bounds = {float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels}
        assert bounds - {float("inf")} == set(metric.buckets)
        for sample in family.samples:
            labels = {name: said for name, said in sample.labels.items() if name != "le"}
            assert labels.keys() == metric.labels.keys()
            assert all(fits(said, metric.labels[name]) for name, said in labels.items()), sample


def test_the_page_is_what_is_declared() -> None:
    """docs/metrics.md was written from the source as it is: `python -m deploy.observability.page`."""
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("part", DECLARED)
def test_a_name_ends_in_its_unit_and_no_label_names_a_run(part: str) -> None:
    """Prometheus's own rules for names; and no label can have more than a few dozen values."""
    for metric in DECLARED[part]:
        assert re.fullmatch(r"runstream_[a-z_]+", metric.name)
        assert not metric.name.endswith(("_total", "_count", "_sum", "_created"))
        assert metric.kind != "histogram" or metric.name.endswith(UNITS)
        assert all(len(values) <= 40 for values in metric.labels.values())
        assert not {"run_id", "run", "conversation", "agent", "tenant"} & metric.labels.keys()
        assert sorted(metric.buckets) == list(metric.buckets)
        assert bool(metric.buckets) == bool(metric.why) == (metric.kind == "histogram")


async def test_what_is_shown_is_what_is_declared(stack: Stack) -> None:
    """Of a gateway and of a broker, before and after they have served something of each kind."""
    run_id, _ = await stack.finished({"chunks": 3})
    async with stack.resume(run_id) as stream:
        await stream.rest()
    writer = await writer_of(stack.broker_base)
    await writer.append(0, 1)
    await writer.end()
    check(await families(stack.base), GATEWAY_METRICS)
    check(await families(stack.broker_base), BROKER_METRICS)


async def test_a_stream_that_ends_with_its_credential_is_counted_as_declared(nats_url: str, tmp_path: Path) -> None:
    """Its cause is one that the page has, and that was there before the first."""
    issuer = Issuer()
    auth = issuer.settings(tmp_path, None, auth_leeway_seconds=0)
    async with stack_running(nats_url, broker=STORE, auth=auth) as guarded:
        assert await value(guarded.base, "runstream_streams_cut_total", cause="credential") == 0
        client = Client(guarded.base, issuer.token(exp=int(time.time()) + 2))
        slow = message({"chunks": 20, "interval_ms": 200})  # Any broker of this NATS may have it executed.
        async with client.stream(f"/v1/agents/{new_agent_id()}/messages/stream", slow) as stream:
            with pytest.raises(Cut):
                await stream.rest()
        assert await value(guarded.base, "runstream_streams_cut_total", cause="credential") == 1
        check(await families(guarded.base), GATEWAY_METRICS)


async def test_tenants_are_counted_apart_who_are_named(nats_url: str, tmp_path: Path) -> None:
    """And nobody else: a tenant that is not named is among the others, however many there are."""
    issuer, named = Issuer(), STORE | {"metrics_tenants": "acme,globex"}
    (secret := tmp_path / "secret").write_bytes(SECRET)
    auth = AuthSettings(auth="jwt", auth_issuer=ISSUER, auth_audience=AUDIENCE, auth_secret_file=secret)
    async with stack_running(nats_url, auth=auth, broker=named) as counting:
        before = {kind: await families(base) for kind, base in bases(counting).items()}
        for tenant in ("acme", "initech", "hooli"):
            headers = {"Authorization": f"Bearer {issuer.token(tenant=tenant)}"}
            ask = partial(fetch, counting.broker_base, "POST", headers=headers)
            opened = await ask("/ingest/v1/runs", json={"agent_id": new_agent_id()})
            run_id = opened.json["run_id"]
            ended = await ask(f"/ingest/v1/runs/{run_id}/end", json={"stop_reason": "end_turn"})
            assert ended.status == 200, ended
            path = f"/v1/runs/{run_id}/stream"
            assert (await fetch(counting.base, "GET", path, headers=headers)).status == 200
        ends = partial(value, counting.broker_base, "runstream_runs_ended_total", status="completed")
        assert [await ends(tenant=name) for name in ("acme", "globex", "other")] == [1, 0, 2]
        streams = partial(value, counting.base, "runstream_streams_total", kind="event_source")
        assert [await streams(tenant=name) for name in ("acme", "globex", "other")] == [1, 0, 2]
        after = {kind: await families(base) for kind, base in bases(counting).items()}
    for kind, shown in before.items():
        check(shown, declared := [counted_apart(metric, "acme", "globex") for metric in DECLARED[kind]])
        check(after[kind], declared)


@pytest.mark.parametrize("said", ["acme,,globex", "acme.globex", "other", ",".join(f"t{n}" for n in range(51))])
def test_tenants_that_cannot_be_counted_are_refused(said: str) -> None:
    """What is no tenant's name, what stands for the others, and more than Prometheus should be given."""
    with pytest.raises(InvalidSettings, match="metrics_tenants"):
        resolved(BrokerSettings, {"metrics_tenants": said})


def bases(stack: Stack) -> dict[str, str]:
    return {"gateway": stack.base, "broker": stack.broker_base}


def counted_apart(metric: Metric, *tenants: str) -> Metric:
    """What a metric is where these tenants are named."""
    labels = {**metric.labels, "tenant": (*tenants, "other")} if metric.by_tenant else metric.labels
    return msgspec.structs.replace(metric, labels=labels)


async def test_every_value_of_a_label_is_there_from_the_start(nats_url: str) -> None:
    """The first run that is lost is an increase that Prometheus can see; none has a series for when it began."""
    async with stack_running(nats_url, broker=STORE) as fresh:
        text = (await fetch(fresh.broker_base, "GET", "/metrics")).body.decode()
        assert "runstream_runs_lost_total 0.0" in text
        assert 'runstream_repairs_total{kind="record_missing"} 0.0' in text
        text = (await fetch(fresh.base, "GET", "/metrics")).body.decode()
        assert 'runstream_resumes_total{outcome="failed"} 0.0' in text
        assert "_created" not in text


@pytest.mark.parametrize(
    ("said", "starting_after", "again", "outcome"),
    [
        ({"chunks": 3}, "tip", False, "over"),
        ({"chunks": 3}, None, False, "log"),
        ({"chunks": 3}, None, True, "memory"),
        ({"chunks": 3 * TAIL_CHUNKS}, None, False, "log"),
        ({"chunks": 3 * TAIL_CHUNKS}, None, True, "memory"),
    ],
)
async def test_a_resume_is_counted_by_where_it_begins(
    stack: Stack, said: dict[str, int], starting_after: str | None, *, again: bool, outcome: str
) -> None:
    """What was missed comes from the log, or from memory where somebody had it before; or nothing was."""
    run_id, events = await stack.finished(said)
    cursor = await stack.tip(await stack.record(run_id)) if starting_after else None
    if again:
        async with stack.resume(run_id, cursor) as stream:
            await stream.rest()
    before = await value(stack.base, "runstream_resumes_total", outcome=outcome)
    timed = await value(stack.base, "runstream_first_chunk_seconds_count", kind="resume")
    async with stack.resume(run_id, cursor) as stream:
        seen = await stream.rest()
    assert len(seen) == (len(events) if cursor is None else 1)
    assert await value(stack.base, "runstream_resumes_total", outcome=outcome) == before + 1
    times = await value(stack.base, "runstream_first_chunk_seconds_count", kind="resume") - timed
    assert times == (0 if outcome == "over" else 1)


async def test_who_has_missed_nothing_is_live(stack: Stack) -> None:
    """The agent's time to say something more is not the time that the resume took."""
    async with stack.live(2) as (run_id, stream):
        before = await value(stack.base, "runstream_resumes_total", outcome="live")
        timed = await value(stack.base, "runstream_first_chunk_seconds_count", kind="resume")
        async with stack.resume(run_id, stream.cursor) as back:
            stack.puppet.say(run_id)
            await back.take(1)
            assert await value(stack.base, "runstream_resumes_total", outcome="live") == before + 1
            assert await value(stack.base, "runstream_first_chunk_seconds_count", kind="resume") == timed


async def test_resumes_that_are_not_served(stack: Stack) -> None:
    """By whose fault it is, in whichever way a client comes back."""
    run_id, _ = await stack.finished({"chunks": 3})
    record = await stack.record(run_id)
    await stack.advance(record)
    await stack.purge_up_to(record, await stack.newest_sequence(record) - 1)
    asked: list[tuple[str, str, dict[str, Any], int, str]] = [
        ("POST", f"/v1/runs/{run_id}/stream", {"json": {}}, 410, "expired"),
        ("GET", f"/v1/runs/{run_id}/stream", {}, 410, "expired"),
        ("POST", f"/v1/runs/{new_run_id()}/stream", {"json": {}}, 404, "not_found"),
        ("GET", f"/v1/runs/{new_run_id()}/stream", {}, 404, "not_found"),
        ("POST", f"/v1/runs/{run_id}/stream", {"json": {"starting_after": "x"}}, 422, "refused"),
    ]
    for method, path, options, status, outcome in asked:
        before = await value(stack.base, "runstream_resumes_total", outcome=outcome)
        assert (await stack.fetch(method, path, **options)).status == status
        assert await value(stack.base, "runstream_resumes_total", outcome=outcome) == before + 1, path


async def test_the_time_to_the_first_chunk_has_the_agents_in_it(stack: Stack) -> None:
    """Of a create it is what its user waits for, from the request to the first word."""
    before = await value(stack.base, "runstream_first_chunk_seconds_count", kind="create")
    seconds = await value(stack.base, "runstream_first_chunk_seconds_sum", kind="create")
    async with stack.create() as stream:
        (ping,) = await stream.take(1)
        run_id = str(ping.json["run_id"])
        tail = stack.hub._tails[run_id]
        await wait_until(lambda: tail.tip is not None and tail.tip.kind is Kind.ATTEMPT)
        assert await value(stack.base, "runstream_first_chunk_seconds_count", kind="create") == before
        asked_at = time.monotonic()
        stack.puppet.say(run_id, 2)
        await stream.take(2)
        took = time.monotonic() - asked_at
        stack.puppet.finish(run_id)
        await stream.rest()
    assert await value(stack.base, "runstream_first_chunk_seconds_count", kind="create") == before + 1
    assert await value(stack.base, "runstream_first_chunk_seconds_sum", kind="create") - seconds < took + 5


async def test_a_live_chunk_in_sixteen_is_timed(stack: Stack) -> None:
    """From when NATS stored it until it was written to sockets: once, however many followers there are."""
    before = await value(stack.base, "runstream_publish_to_socket_seconds_count")
    seconds = await value(stack.base, "runstream_publish_to_socket_seconds_sum")
    chunks = 4 * SAMPLED
    async with stack.live() as (run_id, stream), stack.resume(run_id, stream.cursor) as other:
        await wait_until(lambda: stack.hub.seats.taken == 2 and not stack.hub.followers_behind)
        began = time.time()
        stack.puppet.say(run_id, chunks)
        await stream.take(chunks)
        await other.take(chunks)
        took = time.time() - began
    timed = await value(stack.base, "runstream_publish_to_socket_seconds_count") - before
    assert chunks / SAMPLED - 1 <= timed <= chunks / SAMPLED + 1
    assert 0 < await value(stack.base, "runstream_publish_to_socket_seconds_sum") - seconds < timed * took


async def test_followers_behind_are_those_that_are_not_at_the_tip(nats_url: str, puppet: Puppet) -> None:
    """One whose socket is full is behind until it reads."""
    gateway = {"follower_buffer_bytes": 1024, "tail_bytes": 500_000}
    async with stack_running(nats_url, agent=puppet, gateway=gateway, broker=STORE) as slowed:
        async with slowed.live() as (run_id, stream), slowed.resume(run_id, receive_buffer=4096) as slow:
            await wait_until(lambda: slowed.hub.seats.taken == 2 and not slowed.hub.followers_behind)
            for _ in range(200):
                slowed.puppet.say(run_id, size=50_000)
                await stream.take(1)
            await wait_until(lambda: slowed.hub.followers_behind == 1)
            assert await value(slowed.base, "runstream_followers_behind") == 1
            await slow.take(200)
            await wait_until(lambda: not slowed.hub.followers_behind)
        await slowed.nobody_follows()
        assert await value(slowed.base, "runstream_followers_behind") == 0


async def test_what_the_streams_hold_and_may_hold(stack: Stack) -> None:
    """Whoever sets a limit sees how near it is; a stream without one shows none."""

    async def is_right() -> bool:
        state = (await stack.api("STREAM.INFO.RUNS_0"))["state"]
        names = ("bytes", "messages")
        shown = [await value(stack.broker_base, f"runstream_stream_{name}", stream="RUNS_0") for name in names]
        return shown == [state[name] for name in names]

    for _ in range(2):
        await stack.finished({"chunks": 5})
        await wait_until(is_right, 5)  # What was asked a moment ago is good for a second.

    async def limits() -> dict[str, float]:
        shown = await families(stack.broker_base)
        samples = [sample for family in shown for sample in family.samples]
        return {
            sample.labels["stream"]: sample.value for sample in samples if sample.name == "runstream_stream_limit_bytes"
        }

    assert await wait_until(limits, 5) == {"RUNS_0": 100_000_000}


async def test_without_nats_they_are_shown_all_the_same(stack: Stack, nats_server: NatsServer) -> None:
    """At once, and say so; then that it is back."""
    ports = [(stack.base, "gateway"), (stack.broker_base, "broker")]
    for base, part in ports:
        assert await value(base, f"runstream_{part}_ready") == 1
        assert await value(base, "runstream_nats_connected") == 1
    async with stopped(nats_server):
        await wait_until(lambda: not stack.jetstream.connection.is_connected, 10)
        for base, part in ports:

            async def is_seen(base: str = base) -> bool:
                return await value(base, "runstream_nats_connected") == 0

            await wait_until(is_seen, 10)
            assert await value(base, f"runstream_{part}_ready") == 0
    await stack.is_back()
    for base, part in ports:

        async def is_ready(base: str = base, part: str = part) -> bool:
            return await value(base, f"runstream_{part}_ready") == 1

        await wait_until(is_ready, 20)
        assert await value(base, "runstream_nats_reconnects_total") >= 1


async def test_who_drains_says_for_how_long(nats_url: str, puppet: Puppet) -> None:
    """A gateway and a broker that stop are not ready, and their time runs beside what they have."""
    limits = {**STORE, "drain_seconds": 20}
    async with stack_running(nats_url, agent=puppet, broker=limits) as stopping, stopping.live(1) as (run_id, stream):
        names = ("draining", "draining_seconds", "drain_limit_seconds", "gateway_ready", "streams_cut_total")
        assert [await value(stopping.base, f"runstream_{name}") for name in names] == [0, 0, 20, 1, 0]
        draining = asyncio.create_task(stopping.gateway.drain())
        await wait_until(lambda: stopping.hub.seats.is_draining)
        drains, seconds, limit, ready, _ = [await value(stopping.base, f"runstream_{name}") for name in names]
        assert (drains, limit, ready) == (1, 20, 0)
        assert 0 < seconds < limit
        stopping.puppet.finish(run_id)
        with contextlib.suppress(Cut):
            await stream.rest()
        await draining
    with contextlib.ExitStack() as sockets:
        port = sockets.enter_context(listener())
        async with Broker(stopping.settings, agent=puppet, listener=port) as broker:
            shown = ("draining", "drain_limit_seconds", "broker_ready", "runs_limit")
            most = stopping.settings.worker_concurrency
            assert [await value(url_of(port), f"runstream_{name}") for name in shown] == [0, 20, 1, most]
            await broker.drain()
            assert [await value(url_of(port), f"runstream_{name}") for name in shown] == [1, 20, 0, most]


class Lingering(Upstream):
    """What a gateway cannot give back before the test lets it."""

    def __init__(self) -> None:
        super().__init__(Platform("http://127.0.0.1:1"), UpstreamSettings())
        self.is_left, self.may_end = asyncio.Event(), asyncio.Event()

    async def __aexit__(self, *error: object) -> None:
        self.is_left.set()
        await self.may_end.wait()
        await super().__aexit__(*error)


async def test_a_gateway_that_does_not_come_to_its_end_is_seen(stack: Stack) -> None:
    """On its port for metrics, which is there until all else is given back."""
    upstream = Lingering()
    with contextlib.ExitStack() as sockets:
        port, metrics_port = (sockets.enter_context(listener()) for _ in range(2))
        gateway = Gateway(
            GatewaySettings(), stack.settings, listener=port, metrics_listener=metrics_port, upstream=upstream
        )
        async with asyncio.timeout(10):
            await gateway.__aenter__()
            await gateway.drain()
            leaving = asyncio.create_task(gateway.__aexit__())
            await upstream.is_left.wait()
            assert await value(url_of(metrics_port), "runstream_draining") == 1
            assert await value(url_of(metrics_port), "runstream_draining_seconds") > 0
            upstream.may_end.set()
            await leaving
        assert metrics_port.fileno() == -1


async def test_a_platforms_process_counts_what_it_writes(stack: Stack) -> None:
    """In a registry of its own, which can be shown with the process's others."""
    async with Runs(stack.settings.nats_url, settings=stack.settings) as runs:
        async with runs.open(agent_id=new_agent_id()) as run:
            await run.publish(AssistantMessage(content="Hello"))
            assert runs.registry.get_sample_value("runstream_runs_live") == 1
        check(list(runs.registry.collect()), LIBRARY_METRICS)
        assert runs.registry.get_sample_value("runstream_runs_ended_total", {"status": "completed"}) == 1
        assert (runs.registry.get_sample_value("runstream_publish_seconds_count") or 0) >= 3
