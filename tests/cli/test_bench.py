"""`runstream bench`: what it tells of a deployment is so, and what a deployment loses it notices."""

import asyncio
import contextlib
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from runstream.gateway.commands.client import Client
from runstream.gateway.commands.exits import Exit
from runstream.gateway.commands.load import Figures, Load, Plan
from tests.support.auth import KeyFile
from tests.support.commands import Done, command, done, finished
from tests.support.core import SETTINGS
from tests.support.nats import NatsServer, nats_server_running
from tests.support.proxy import Proxy
from tests.support.stack import Stack, listener, stack_running, url_of
from tests.support.waiting import wait_until

SMALL = ("--runs", "2", "--followers", "3", "--rate", "20", "--seconds", "1")


class Hook:
    """A progress that nobody looks at; `stored` is called with the number of chunks that are."""

    def __init__(self, stored: Callable[[int], None] = lambda _: None) -> None:
        self._stored = stored
        self._count = 0

    def begin(self, what: str, total: int | None) -> None:
        """Something begins."""

    def advance(self, steps: int) -> None:
        """Some of it is done."""
        self._count += steps
        self._stored(self._count)


async def benched(stack: Stack, *args: str, url: str | None = None, ingest_url: str | None = None) -> Done:
    """Run the command to its end, against a stack or what is in front of it."""
    where = ("--url", url or stack.base, "--ingest-url", ingest_url or stack.broker_base)
    return await done("bench", *where, *args)


@contextlib.asynccontextmanager
async def between(stack: Stack, change: Callable[[list[bytes]], list[bytes]]) -> AsyncIterator[str]:
    """A gateway of which each stream is whole and then changed; all else is as it is."""

    async def pass_on(request: web.Request) -> web.StreamResponse:
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, stack.base + request.path_qs, data=await request.read()) as answer,
        ):
            body = await answer.read()
        if request.path.endswith("/stream"):
            body = b"".join(change([event + b"\n\n" for event in body.split(b"\n\n") if event]))
        return web.Response(status=answer.status, body=body, content_type=answer.content_type)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", pass_on)
    runner, bound = web.AppRunner(app), listener()
    await runner.setup()
    await web.SockSite(runner, bound).start()
    try:
        yield url_of(bound)
    finally:
        await runner.cleanup()


async def test_it_tells_what_became_of_its_runs(stack: Stack) -> None:
    """Every chunk is stored once and delivered to each follower, and the runs have completed."""
    (told,) = (await benched(stack, *SMALL, "--json")).json
    assert (told["chunks"], told["deliveries"]) == (2 * 20, 2 * 20 * 3)
    assert (told["lost"], told["out_of_place"], told["cuts"]) == (0, 0, 0)
    for name in ("stored_ms", "delivered_ms", "come_back_ms", "read_again_ms"):
        assert 0 < told[name]["p50"] <= told[name]["p99"] <= told[name]["longest"]
    runs = (await stack.fetch("GET", f"/v1/runs/?agent_id={told['agent_id']}")).json
    assert [each["status"] for each in runs] == ["completed"] * 2
    said = (await stack.fetch("GET", f"/v1/runs/{runs[0]['id']}/messages")).json
    assert "".join(each["content"] for each in said).count("bench ") == 21, "one that all are awaited with, and 20"


async def test_people_are_shown_a_table(stack: Stack) -> None:
    """A line for what it takes to store, deliver, come back and read again, and what was wrong: nothing."""
    made = await benched(stack, *SMALL)
    assert made.code == 0
    assert made.lines[0] == "2 runs, in each 3 followers and 20 chunks a second of 250 characters, for 1 s"
    for name in ("stored", "delivered", "come back", "read again"):
        (line,) = (line for line in made.lines if line.startswith(name))
        assert len(re.findall(r"[\d.]+ m?s\b", line)) == 3
    assert "0 chunks lost, 0 chunks out of place, 0 connections cut and taken up again." in made.lines


async def test_more_followers_than_an_http_client_has_connections(stack: Stack) -> None:
    """All of one run's are there at once: who waited for the end of another would never see the beginning."""
    told = (await benched(stack, "--runs", "1", "--followers", "150", "--rate", "5", "--seconds", "1", "--json")).json[
        0
    ]
    assert told["deliveries"] == 5 * 150
    assert told["lost"] == 0


async def test_as_fast_as_they_are_stored(stack: Stack) -> None:
    """Without a rate there are as many chunks as there was time for, and each comes."""
    (told,) = (await benched(stack, "--runs", "2", "--followers", "2", "--seconds", "1", "--burst", "--json")).json
    assert told["rate"] is None
    assert told["chunks"] >= 500
    assert (told["deliveries"], told["lost"]) == (2 * told["chunks"], 0)


async def test_connections_that_break_are_counted(stack: Stack) -> None:
    """They are made again, and nothing is lost by that."""
    async with Proxy.running([stack.base], cuts=[3_000] * 4) as proxy:
        (told,) = (await benched(stack, *SMALL, "--json", url=proxy.url)).json
    assert told["cuts"] >= 1
    assert (told["deliveries"], told["lost"], told["out_of_place"]) == (2 * 20 * 3, 0, 0)


def _numbered(events: list[bytes], number: int) -> int:
    return next(at for at, event in enumerate(events) if b"bench %d " % number in event)


def _lose(events: list[bytes]) -> list[bytes]:
    return [event for event in events if b"bench 7 " not in event]


def _swap(events: list[bytes]) -> list[bytes]:
    """The chunks of two events, in the place of each other."""
    seven, eight = _numbered(events, 7), _numbered(events, 8)
    events[seven] = events[seven].replace(b"bench 7 ", b"bench 8 ")
    events[eight] = events[eight].replace(b"bench 8 ", b"bench 7 ")
    return events


def _take_another(events: list[bytes]) -> list[bytes]:
    """A chunk of another run in place of one."""
    seven = _numbered(events, 7)
    events[seven] = re.sub(rb"bench 7 of run-.{36}", b"bench 7 of run-" + b"0" * 36, events[seven])
    return events


@pytest.mark.parametrize(("change", "lost", "out_of_place"), [(_lose, 1, 0), (_swap, 1, 1), (_take_another, 1, 1)])
async def test_what_is_lost_or_out_of_place_is_noticed(
    stack: Stack, change: Callable[[list[bytes]], list[bytes]], lost: int, out_of_place: int
) -> None:
    """Each time that it happens, and the exit code is 1."""

    def only_of_whole_ones(events: list[bytes]) -> list[bytes]:
        return change(events) if any(b"bench 7 " in event for event in events) else events

    async with between(stack, only_of_whole_ones) as url:
        # Each stream is passed on once it has ended: so nobody is to wait for a first chunk that a follower has.
        figures = await _read_again(stack, url)
    assert (figures.lost, figures.out_of_place) == (lost, out_of_place)


async def _read_again(stack: Stack, url: str) -> Figures:
    """What is noticed where one follower reads a run again through another URL than it was followed at."""
    async with Client(stack.broker_base) as writer, Client(stack.base) as reader, Client(url) as changed:

        class Switching(Hook):
            def begin(self, what: str, total: int | None) -> None:
                del total
                if what == "read again":
                    load.reader = changed

        plan = Plan(runs=1, followers=1, seconds=1, size=100, rate=20)
        load = Load(writer, reader, plan, Switching(), patience_seconds=10)
        return await load.carry_out()


async def test_a_chunk_is_late_from_when_it_was_due(nats_server: NatsServer) -> None:
    """All that was due while a broker was away has waited, and not only the one that was being sent."""
    halfway = asyncio.Event()
    plan = Plan(runs=1, followers=1, seconds=2, size=100, rate=20)
    async with (
        # Under a lease that outlasts that.
        stack_running(nats_server.url) as stack,
        Proxy.running([stack.broker_base]) as proxy,
        Client(proxy.url) as writer,
        Client(stack.base) as reader,
    ):
        load = Load(
            writer, reader, plan, Hook(lambda stored: halfway.set() if stored >= 10 else None), patience_seconds=20
        )
        working = asyncio.create_task(load.carry_out())
        await asyncio.wait_for(halfway.wait(), 20)
        async with proxy.away():
            until = time.monotonic() + 1

            async def is_over() -> bool:
                return time.monotonic() > until

            await wait_until(is_over, 5)
        figures = await working
    assert figures.stored.count == 40
    assert figures.stored.longest >= 0.9
    # Of a second, in which 20 were due, those of the first 0.7 s waited for 0.3 s: a third of all.
    assert figures.stored.quantile(0.7) >= 0.3
    assert figures.lost == 0


async def test_interrupted_it_cancels_its_runs(stack: Stack) -> None:
    """They are not left to their leases, and the exit code is that of any command on Ctrl-C."""
    before = {each["id"] for each in (await stack.fetch("GET", "/v1/runs/?limit=100")).json}
    where = ("--url", stack.base, "--ingest-url", stack.broker_base)
    async with command("bench", *where, "--runs", "3", "--followers", "2", "--seconds", "60") as process:

        async def own() -> list[dict[str, Any]]:
            listed = (await stack.fetch("GET", "/v1/runs/?limit=100")).json
            return [each for each in listed if each["id"] not in before]

        async def is_under_way() -> bool:
            said = [(await stack.fetch("GET", f"/v1/runs/{each['id']}/messages")).json for each in await own()]
            return len(said) == 3 and all(said)

        await wait_until(is_under_way, 20, "it does not begin")
        process.send_signal(signal.SIGINT)
        assert (await finished(process)).code == Exit.INTERRUPTED
    assert [each["status"] for each in await own()] == ["cancelled"] * 3


async def test_a_run_may_have_too_few_chunks_for_it(tmp_path: Path) -> None:
    """It is said how many, and what to ask for; nothing is left running."""
    async with (
        nats_server_running(tmp_path) as server,
        stack_running(server.url, broker={**SETTINGS, "max_run_messages": 64}) as stack,
    ):
        made = await benched(stack, "--runs", "1", "--followers", "1", "--rate", "100", "--seconds", "2")
        assert made.code == 1
        assert re.search(
            r"A run may have \d+ chunks there: ask for fewer --seconds, or a lower --rate\.", made.complaint
        )
        (run,) = (await stack.fetch("GET", "/v1/runs/")).json
        assert run["status"] == "cancelled"


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--size", "79"), 2, "--size"),
        (("--rate", "0"), 2, "--rate"),
        (("--followers", "9999999"), 2, "That takes"),
    ],
)
async def test_what_cannot_be_is_refused(stack: Stack, args: tuple[str, ...], code: int, says: str) -> None:
    """Before anything is begun, in one line."""
    before = (await stack.fetch("GET", "/v1/runs/")).json
    made = await benched(stack, *args)
    assert (made.code, made.lines) == (code, [])
    assert says in made.complaint
    assert (await stack.fetch("GET", "/v1/runs/")).json == before


async def test_who_is_asked_for_the_wrong_thing_is_named(stack: Stack) -> None:
    """A broker's URL where a gateway's belongs, and the other way round."""
    swapped = await benched(stack, *SMALL, url=stack.broker_base)
    assert (swapped.code, swapped.complaint.count("--url")) == (2, 1)
    swapped = await benched(stack, *SMALL, ingest_url=stack.base)
    assert swapped.code == 2
    assert f"{stack.base} takes no runs: --ingest-url is a broker's" in swapped.complaint


async def test_a_key_that_may_not_write_is_refused(nats_server: NatsServer, tmp_path: Path) -> None:
    """Runs of its own take the scope `platform`, as those of `runstream publish` do."""
    keys = KeyFile(tmp_path / "keys")
    read, both = keys.add(scopes="runs:read"), keys.add(scopes="runs:read platform")
    async with stack_running(nats_server.url, broker=SETTINGS, auth=keys.settings) as stack:
        where = ("--url", stack.base, "--ingest-url", stack.broker_base)
        refused = await done("bench", *where, *SMALL, env={"RUNSTREAM_KEY": read})
        assert refused.code == Exit.REFUSED
        assert "platform" in refused.complaint
        assert (await done("bench", *where, *SMALL, env={"RUNSTREAM_KEY": both})).code == 0
