"""What a server of this API keeps to, as checks from outside: each makes runs, breaks connections, and looks.

A check returns if the server does as it should, and raises `Broken` with what it did instead, or `Unsupported`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import uuid4

from runstream.gateway.commands.events import DONE
from runstream.gateway.commands.subject import OK, Unsupported, expect, stored
from runstream.gateway.commands.terminal import counted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from runstream.gateway.commands.subject import Run, Said, Server

__all__ = ["CHECKS", "GROUPS", "Check"]

SOME: Final = 3
"""Events that are read before a connection is broken off."""
MORE: Final = 20
"""Events that a run which goes on says within seconds."""
CONFLICT: Final = 409


class Check(NamedTuple):
    """One thing a server keeps to."""

    group: str
    says: str
    look: Callable[[Server], Awaitable[None]]


CHECKS: Final[list[Check]] = []
GROUPS: Final = ("streams", "cursors", "resume", "otids", "endings", "cancel")


def check(group: str) -> Callable[[Callable[[Server], Awaitable[None]]], Callable[[Server], Awaitable[None]]]:
    """Add a check to the list; its docstring is what it says."""

    def add(look: Callable[[Server], Awaitable[None]]) -> Callable[[Server], Awaitable[None]]:
        CHECKS.append(Check(group, (look.__doc__ or "").rstrip("."), look))
        return look

    return add


def shown(events: Sequence[Said]) -> str:
    """Name events, for a complaint: the last of them."""
    return " ".join(f"{event.kind}{'' if event.seq is None else f'#{event.seq}'}" for event in events[-6:]) or "nothing"


def same(found: Sequence[Said], expected: Sequence[Said], what: str) -> None:
    """Raise `Broken` unless these are the same events, in the same order, pings aside."""
    ours, theirs = [each.chunk for each in stored(found)], [each.chunk for each in stored(expected)]
    if ours == theirs:
        return
    place = next((number for number, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    where = (
        f"they differ at event {place}"
        if place is not None
        else f"{counted(len(ours), 'event')}, and not {len(theirs)}"
    )
    expect(False, f"{what}: {where}; it ends with {shown(found)}, and should with {shown(expected)}")  # noqa: FBT003


def after(run: Run, cursor: int) -> list[Said]:
    """Give what a resume after this cursor has to show: what follows the event with it."""
    place = next(number for number, event in enumerate(run.events) if event.seq == cursor)
    return run.events[place + 1 :]


# -- streams ------------------------------------------------------------------------------------------------------


@check("streams")
async def names_the_run_first(server: Server) -> None:
    """The first event is a ping that names the run and has a cursor."""
    first = (await server.finished()).events[0]
    expect(first.kind == "ping" and first.seq is not None, f"it is {shown([first])}")


@check("streams")
async def no_pings_unless_asked(server: Server) -> None:
    """With include_pings false there is no ping."""
    run = await server.finished()
    events = await server.resumed(run.id, include_pings=False)
    expect(all(event.kind != "ping" for event in events), f"there is one: {shown(events[:1])}")


@check("streams")
async def of_one_run(server: Server) -> None:
    """Every message of a stream names the same run."""
    run = await server.finished()
    named = {event.chunk["run_id"] for event in run.events if event.chunk is not None and "run_id" in event.chunk}
    expect(named == {run.id}, f"they name {sorted(map(str, named))}")


@check("streams")
async def unknown_runs(server: Server) -> None:
    """A run that is not there is 404, and what is no run's id 400."""
    unknown = await server.unknown_run()
    for run_id, expected in ((unknown, 404), ("run-1", 400)):
        status, _ = await server.ask("POST", f"/v1/runs/{run_id}/stream", {})
        expect(status == expected, f"{run_id} is answered {status}, and not {expected}")


@check("streams")
async def listed(server: Server) -> None:
    """A run that was made is in the list of its agent's runs."""
    run = await server.finished()
    status, runs = await server.ask("GET", f"/v1/runs/?agent_id={server.inputs.agent_id}&limit=100")
    if status in {404, 405, 501}:
        raise Unsupported(f"GET /v1/runs/ answers {status}")
    expect(isinstance(runs, list), f"GET /v1/runs/ answers {status}, and no list")
    expect(run.id in [each.get("id") for each in runs if isinstance(each, dict)], "it is not")


# -- cursors ------------------------------------------------------------------------------------------------------


@check("cursors")
async def cursors_grow(server: Server) -> None:
    """The cursors of a stream grow from event to event."""
    run = await server.finished()
    expect(all(one < other for one, other in pairwise(run.cursors)), f"they are {run.cursors}")


@check("cursors")
async def every_cursor(server: Server) -> None:
    """After any cursor of a run that has ended comes what followed it, once, and nothing else."""
    run = await server.finished()
    last = len(run.cursors) - 1
    for place in sorted({0, last // 3, last // 2, last - 1, last} & {*range(len(run.cursors))}):
        cursor = run.cursors[place]
        same(await server.resumed(run.id, cursor), after(run, cursor), f"after cursor {cursor}")


@check("cursors")
async def cursor_at_the_end(server: Server) -> None:
    """After the last cursor of a run that has ended a stream ends by itself, with [DONE]."""
    run = await server.finished()
    events = await server.resumed(run.id, run.cursors[-1])
    expect(events and events[-1].kind == DONE, f"it ends with {shown(events)}")


@check("cursors")
async def cursor_beyond(server: Server) -> None:
    """A cursor that lies beyond a run that has ended is told so: [DONE], or a refusal, and no silence."""
    run = await server.finished()
    body = {"starting_after": run.cursors[-1] + 1000}
    status, _ = await server.ask("POST", f"/v1/runs/{run.id}/stream", body)
    expect(status in {OK, 400, 410}, f"it is answered {status}")


@check("cursors")
async def no_cursors(server: Server) -> None:
    """What is no cursor is 422."""
    run = await server.finished()
    for cursor in ("abc", 1.5, None):
        status, _ = await server.ask("POST", f"/v1/runs/{run.id}/stream", {"starting_after": cursor})
        expect(status == 422, f"{cursor!r} is answered {status}")  # noqa: PLR2004  # said in this line


# -- resume -------------------------------------------------------------------------------------------------------


@check("resume")
async def again(server: Server) -> None:
    """A run that has ended is streamed again as it was."""
    run = await server.finished()
    same(await server.resumed(run.id), run.events, "from the beginning")


@check("resume")
async def broken_off(server: Server) -> None:
    """A connection that broke is gone on with where it was, while the run goes on: nothing is missing or twice."""
    async with server.running(server.inputs.long) as (run_id, stream):
        begun = await stream.take(SOME)
    cursor = begun[-1].seq
    expect(cursor is not None, f"{shown(begun[-1:])} has no seq_id")
    async with server.stream(f"/v1/runs/{run_id}/stream", {"starting_after": cursor}) as resumed:
        rest = await resumed.take(SOME)
    async with server.stream(f"/v1/runs/{run_id}/stream", {"starting_after": 0}) as whole:
        same([*begun, *rest], await whole.take(2 * SOME), "the two parts")


@check("resume")
async def goes_on(server: Server) -> None:
    """A run goes on when its client hangs up."""
    async with server.running(server.inputs.long) as (run_id, stream):
        await stream.take(1)
    # Whoever stops it does so when nobody takes what it says next.
    async with server.stream(f"/v1/runs/{run_id}/stream", {"starting_after": 0}) as resumed:
        try:
            await resumed.take(MORE)
        except Unsupported:
            status = await server.status(run_id)
            expect(status == "completed", f"it is {status}")
            raise


@check("resume")
async def by_conversation(server: Server) -> None:
    """A conversation's run is found by its conversation while it goes on, and is 400 once it has ended."""
    conversation = f"/v1/conversations/{await server.conversation()}"
    async with server.running(server.inputs.long, f"{conversation}/messages") as (run_id, stream):
        await stream.take(1)
        async with server.stream(f"{conversation}/stream", {}) as found:
            expect(await found.run_id() == run_id, "it is another run")
        await server.ask("POST", f"{conversation}/cancel")
    status, answer = await server.ask("POST", f"{conversation}/stream", {})
    expect(status == 400, f"with nothing going on it is {status}: {str(answer)[:100]}")  # noqa: PLR2004


@check("resume")
async def by_event_source(server: Server) -> None:
    """A browser's EventSource follows a run by GET, with ids to come back with, and is stopped by 204."""
    run = await server.finished()
    path = f"/v1/runs/{run.id}/stream"
    status, _ = await server.ask("GET", path)
    if status in {404, 405}:
        raise Unsupported(f"GET {path} answers {status}")
    async with server.stream(path, method="GET") as stream:
        events = stored(await stream.rest())
    expect(events, "nothing came")
    expect(all(event.id for event in events), "an event that is stored has no id")
    place = len(events) // 2
    async with server.stream(path, method="GET", headers={"Last-Event-ID": str(events[place].id)}) as stream:
        same(await stream.rest(), events[place + 1 :], "after a Last-Event-ID")
    status, _ = await server.ask("GET", f"{path}?starting_after={events[-1].id}")
    expect(status == 204, f"after the last id it is answered {status}")  # noqa: PLR2004  # said in this line


# -- otids --------------------------------------------------------------------------------------------------------


@check("otids")
async def the_same_request(server: Server) -> None:
    """The same request again is answered by the same run, while it goes on and after it has ended."""
    path, otid = f"/v1/conversations/{await server.conversation()}/messages", str(uuid4())
    async with server.running(server.inputs.long, path, otid=otid) as (run_id, stream):
        await stream.take(1)
        async with server.running(server.inputs.long, path, otid=otid) as (again_id, _):
            expect(again_id == run_id, "while it goes on it is another run")
        await server.settle()
    async with server.running(server.inputs.long, path, otid=otid) as (again_id, _):
        expect(again_id == run_id, "after it has ended it is another run")


@check("otids")
async def busy(server: Server) -> None:
    """Another message to a conversation that is busy is 409, and names the run."""
    path = f"/v1/conversations/{await server.conversation()}/messages"
    async with server.running(server.inputs.long, path, otid=str(uuid4())) as (run_id, stream):
        await stream.take(1)
        status, answer = await server.ask("POST", path, server.message(server.inputs.short, str(uuid4())))
        expect(status == CONFLICT, f"it is answered {status}")
        expect(run_id in str(answer), f"it does not name {run_id}: {str(answer)[:200]}")


@check("otids")
async def resumed_by_otid(server: Server) -> None:
    """A run is found by the otid of its message, and an otid that nobody used is 404."""
    conversation, otid = f"/v1/conversations/{await server.conversation()}", str(uuid4())
    async with server.running(server.inputs.long, f"{conversation}/messages", otid=otid) as (run_id, stream):
        await stream.take(1)
        async with server.stream(f"{conversation}/stream", {"otid": otid}) as found:
            expect(await found.run_id() == run_id, "it is another run")
    status, _ = await server.ask("POST", f"{conversation}/stream", {"otid": str(uuid4())})
    expect(status == 404, f"one that nobody used is answered {status}")  # noqa: PLR2004


# -- endings ------------------------------------------------------------------------------------------------------


@check("endings")
async def completed(server: Server) -> None:
    """A run that completes ends with one stop_reason, its usage and [DONE]; its status says so by then."""
    run = await server.finished()
    kinds = [event.kind for event in stored(run.events)]
    expect(kinds[-3:] == ["stop_reason", "usage_statistics", DONE], f"it ends with {shown(run.events)}")
    expect(kinds.count("stop_reason") == 1, f"there are {kinds.count('stop_reason')} stop reasons")
    status = await server.status(run.id)
    expect(status == "completed", f"it is {status}")


@check("endings")
async def failed(server: Server) -> None:
    """A run that fails ends with one stop_reason, `event: error` and [DONE]; resumed, it says the same."""
    async with server.running(server.inputs.failing) as (run_id, stream):
        await stream.rest()
    events = stored(stream.seen)
    kinds = [event.kind for event in events]
    if "error_message" not in kinds:
        raise Unsupported("no run failed: name an input that lets one fail (--failing-input)")
    expect(kinds[-3:] == ["stop_reason", "error_message", DONE], f"it ends with {shown(events)}")
    expect(events[-2].name == "error", f"the error is an event named {events[-2].name!r}")
    status = await server.status(run_id)
    expect(status == "failed", f"it is {status}")
    same(await server.resumed(run_id), events, "resumed")


@check("endings")
async def foreground(server: Server) -> None:
    """A run that was made in the foreground has no cursors, and is not resumed: 400."""
    async with server.running(server.inputs.short, background=False) as (run_id, stream):
        await stream.rest()
    if any(event.seq is not None for event in stream.seen):
        raise Unsupported("this server makes every run in the background")
    status, _ = await server.ask("POST", f"/v1/runs/{run_id}/stream", {})
    expect(status == 400, f"it is answered {status}")  # noqa: PLR2004


# -- cancel -------------------------------------------------------------------------------------------------------


@check("cancel")
async def cancelled(server: Server) -> None:
    """A cancel ends the run: one stop_reason `cancelled`, then [DONE]; its status says so, to who resumes it, too."""
    conversation = f"/v1/conversations/{await server.conversation()}"
    async with server.running(server.inputs.long, f"{conversation}/messages") as (run_id, stream):
        await stream.take(1)
        status, answer = await server.ask("POST", f"{conversation}/cancel")
        expect(status == OK, f"it is answered {status}: {str(answer)[:200]}")
        expect(answer == {run_id: "cancelled"}, f"it is answered {str(answer)[:200]}")
        await stream.rest(at_once=True)
    events = stored(stream.seen)
    expect([event.kind for event in events[-2:]] == ["stop_reason", DONE], f"it ends with {shown(events)}")
    reasons = [(event.chunk or {}).get("stop_reason") for event in events if event.kind == "stop_reason"]
    expect(reasons == ["cancelled"], f"its stop reasons are {reasons}")
    found = await server.status(run_id)
    expect(found == "cancelled", f"it is {found}")
    same(await server.resumed(run_id), events, "resumed")


@check("cancel")
async def frees_the_conversation(server: Server) -> None:
    """After a cancel the conversation takes the next message at once, and has nothing to cancel: 409."""
    conversation = f"/v1/conversations/{await server.conversation()}"
    async with server.running(server.inputs.long, f"{conversation}/messages") as (_, stream):
        await stream.take(1)
        await server.ask("POST", f"{conversation}/cancel")
    status, _ = await server.ask("POST", f"{conversation}/cancel")
    expect(status == CONFLICT, f"a cancel of nothing is answered {status}")
    async with server.running(server.inputs.short, f"{conversation}/messages") as (_, stream):
        await stream.rest()
    expect(stream.seen[-1].kind == DONE, f"the next message's stream ends with {shown(stream.seen)}")
