"""`runstream bench`: what it tells of a deployment is so, and what a deployment loses it notices."""

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest
from aiohttp import web

from runstream.gateway.commands import bench, load
from runstream.gateway.commands.client import Client
from runstream.gateway.commands.exits import Exit, Failed
from runstream.gateway.commands.load import Load, Plan
from tests.support.auth import KeyFile
from tests.support.commands import Done, command, done, finished
from tests.support.core import SETTINGS
from tests.support.nats import NatsServer, free_ports, nats_server_running
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


Change: TypeAlias = Callable[[bytes], list[bytes]]
"""What becomes of an event on its way, of one stream."""


@contextlib.asynccontextmanager
async def between(
    stack: Stack,
    flaw: Callable[[], Change] = lambda: lambda event: [event],
    *,
    late_seconds: float = 0,
) -> AsyncIterator[str]:
    """A gateway whose streams are late, or pass through a flaw, each through one of its own."""

    async def pass_on(request: web.Request) -> web.StreamResponse:
        async with aiohttp.ClientSession() as session, session.get(stack.base + request.path_qs) as answer:
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            if not request.path.endswith("/stream"):
                await response.write(await answer.read())
                return response
            await asyncio.sleep(late_seconds)
            change = flaw()
            while event := await answer.content.readuntil(b"\n\n"):
                for changed in change(event):
                    with contextlib.suppress(ConnectionError):  # who came back has what it wanted
                        await response.write(changed)
            return response

    app = web.Application()
    app.router.add_get("/{path:.*}", pass_on)
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
    assert (told["lost"], told["out_of_place"], told["outages"]) == (0, 0, 0)
    # Two runs of 20 a second; a machine that stalls stores fewer, and none can before they are due.
    assert 0 < told["stored_per_second"] < 43
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
    assert "0 chunks lost, 0 chunks out of place, 0 streams cut or turned away and taken up again." in made.lines


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


async def test_streams_that_break_are_counted(stack: Stack) -> None:
    """Each once, however many tries it takes to have it again; nothing is lost by that, and the reason is told."""
    async with Proxy.running([stack.base], cuts=[3_000, 1]) as proxy:
        args = ("--runs", "1", "--followers", "1", "--rate", "20", "--seconds", "1")
        (told,) = (await benched(stack, *args, "--json", url=proxy.url)).json
    # The first answer is that to the question whether there is a gateway, which is shorter.
    assert told["outages"] == 1
    assert "cannot be reached" in told["last_outage"] or "cut the connection" in told["last_outage"]
    assert (told["deliveries"], told["lost"], told["out_of_place"]) == (20, 0, 0)


def _lose() -> Change:
    return lambda event: [] if b"bench 7 " in event else [event]


def _swap() -> Change:
    """The texts of two chunks, in the place of each other."""
    held: list[bytes] = []

    def change(event: bytes) -> list[bytes]:
        if b"bench 7 " in event:
            held.append(event)
            return []
        if b"bench 8 " in event:
            return [held.pop().replace(b"bench 7 ", b"bench 8 "), event.replace(b"bench 8 ", b"bench 7 ")]
        return [event]

    return change


def _repeat() -> Change:
    """The text of a chunk in place of the one after it, as another chunk."""
    return lambda event: [event.replace(b"bench 8 ", b"bench 7 ")]


def _take_another() -> Change:
    """A chunk of another run in place of one."""
    return lambda event: [re.sub(rb"bench 7 of run-.{36}", b"bench 7 of run-" + b"0" * 36, event)]


@pytest.mark.parametrize(
    ("flaw", "lost", "out_of_place"), [(_lose, 1, 0), (_swap, 0, 1), (_repeat, 1, 1), (_take_another, 1, 1)]
)
async def test_what_is_lost_or_out_of_place_is_noticed(
    stack: Stack, flaw: Callable[[], Change], lost: int, out_of_place: int
) -> None:
    """By who follows and by who reads again, and the exit code is 1."""
    async with between(stack, flaw) as url:
        args = ("--runs", "1", "--followers", "1", "--rate", "20", "--seconds", "1")
        made = await benched(stack, *args, "--json", url=url)
    (told,) = made.json
    assert (told["lost"], told["out_of_place"], made.code) == (2 * lost, 2 * out_of_place, 1)


async def test_a_run_lives_while_its_followers_are_awaited(stack: Stack) -> None:
    """However much longer than a lease that takes."""
    async with between(stack, late_seconds=2.5 * stack.settings.lease_seconds) as url:
        args = ("--runs", "1", "--followers", "1", "--rate", "5", "--seconds", "1", "--json")
        (told,) = (await benched(stack, *args, url=url)).json
    assert (told["deliveries"], told["lost"]) == (5, 0)


async def test_who_sends_nothing_is_not_waited_for_for_ever(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings are nothing; its runs are cancelled, and how many have no follower is said."""
    monkeypatch.setattr(load, "QUIET_SECONDS", 1.0)
    plan = Plan(runs=2, followers=1, seconds=1, size=100, rate=20)
    async with (
        between(stack, lambda: lambda event: [] if b"bench" in event else [event]) as url,
        Client(stack.broker_base) as writer,
        Client(url) as reader,
    ):
        mute = Load(writer, reader, plan, Hook(), patience_seconds=0)
        with pytest.raises(Failed, match=r"Nothing has come of .* for 1 s: 2 followers have no chunk yet"):
            await mute.carry_out()
    assert mute.left == 0
    runs = (await stack.fetch("GET", f"/v1/runs/?agent_id={mute.agent_id}")).json
    assert [each["status"] for each in runs] == ["cancelled"] * 2


async def test_without_patience_it_works_where_nothing_is_wrong(stack: Stack) -> None:
    """How long to go on trying is no bound on what takes a moment."""
    (told,) = (await benched(stack, *SMALL, "--patience", "0", "--json")).json
    assert (told["deliveries"], told["lost"]) == (2 * 20 * 3, 0)


async def test_it_says_when_it_is_itself_too_busy(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it shows may then be its own."""
    plan = Plan(runs=1, followers=1, seconds=1, size=100, rate=20)
    for share, says in ((0.0, True), (2.0, False)):
        monkeypatch.setattr(bench, "BUSY_SHARE", share)
        clients = Client(stack.broker_base), Client(stack.base)
        assert await bench._bench(*clients, plan, patience=10, as_json=True) == Exit.FINE
        assert ("of a core, and may be what was slow" in capsys.readouterr().err) is says


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
        hook = Hook(lambda stored: halfway.set() if stored >= 10 else None)
        working = asyncio.create_task(Load(writer, reader, plan, hook, patience_seconds=20).carry_out())
        await asyncio.wait_for(halfway.wait(), 20)
        async with proxy.away():
            await asyncio.sleep(1)  # how long it is away
        figures = await working
    assert figures.stored.count == 40
    assert figures.stored.longest >= 0.9
    # Of a second, in which 20 were due, those of the first 0.7 s waited for 0.3 s: a third of all.
    assert figures.stored.quantile(0.7) >= 0.3
    assert figures.lost == 0


async def test_interrupted_it_cancels_its_runs(stack: Stack) -> None:
    """They are not left to their leases, and the exit code is that of any command on Ctrl-C."""
    before = {each["id"] for each in await listed(stack)}
    where = ("--url", stack.base, "--ingest-url", stack.broker_base)
    async with command("bench", *where, "--runs", "3", "--followers", "2", "--seconds", "60") as process:

        async def is_under_way() -> bool:
            own = [each["id"] for each in await listed(stack) if each["id"] not in before]
            said = [(await stack.fetch("GET", f"/v1/runs/{each}/messages")).json for each in own]
            return len(said) == 3 and all(said)

        await wait_until(is_under_way, 20, "it does not begin")
        process.send_signal(signal.SIGINT)
        assert (await finished(process)).code == Exit.INTERRUPTED
    assert [each["status"] for each in await listed(stack) if each["id"] not in before] == ["cancelled"] * 3


async def test_runs_that_are_being_opened_are_cancelled_too(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of them is known: who is asked to open one again says which one it is."""
    monkeypatch.setattr(load, "ENDING_SECONDS", 30.0)  # on a machine that others use as well
    plan = Plan(runs=40, followers=1, seconds=1, size=100, rate=20)
    async with Client(stack.broker_base) as writer, Client(stack.base) as reader:
        broken = Load(writer, reader, plan, Hook(), patience_seconds=10)
        working = asyncio.create_task(broken.carry_out())

        async def some() -> bool:
            return bool((await stack.fetch("GET", f"/v1/runs/?agent_id={broken.agent_id}")).json)

        await wait_until(some, 20, "none is opened")
        working.cancel()
        await asyncio.wait([working])
    assert broken.left == 0
    assert {each["status"] for each in await listed(stack, broken.agent_id)} == {"cancelled"}


async def listed(stack: Stack, agent_id: str | None = None) -> list[dict[str, Any]]:
    """The newest runs, of one agent or of all."""
    whose = "" if agent_id is None else f"&agent_id={agent_id}"
    found: list[dict[str, Any]] = (await stack.fetch("GET", f"/v1/runs/?limit=100{whose}")).json
    return found


async def test_without_a_broker_it_is_exit_code_3(stack: Stack) -> None:
    """Whether anything was begun there nobody knows, and nothing is said to be so."""
    (port,) = free_ports(1)
    made = await benched(stack, *SMALL, "--patience", "0", ingest_url=f"http://127.0.0.1:{port}")
    assert made.code == Exit.UNREACHABLE
    may, why = made.errors
    assert " may go on, as nobody answered" in may
    assert why.endswith("Is it up, and is --ingest-url right?")


async def test_what_is_no_broker_is_told_so(stack: Stack) -> None:
    """Also one that answers everything, and with JSON."""

    async def fine(_: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fine)
    runner, bound = web.AppRunner(app), listener()
    await runner.setup()
    await web.SockSite(runner, bound).start()
    try:
        made = await benched(stack, *SMALL, ingest_url=url_of(bound))
    finally:
        await runner.cleanup()
    assert made.code == 1
    assert made.complaint.endswith("answers as no broker does: is --ingest-url a broker's?")


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
        (("--rate", "1000000000"), 2, "1,000,000 are the most"),
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
