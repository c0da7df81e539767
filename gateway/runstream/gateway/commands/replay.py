"""`runstream replay`: shows a run again as it went, in the time that its chunks were stored in."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Final

import typer

from runstream.gateway.commands.client import Client
from runstream.gateway.commands.exits import OF_CLIENTS, CommandError, Exit, Failed, Unreachable, run
from runstream.gateway.commands.following import Follower
from runstream.gateway.commands.options import PLAIN, AsJson, Key, Patience, Url, given_again
from runstream.gateway.commands.pace import Pace, speed_of
from runstream.gateway.commands.settings import GATEWAY_URL
from runstream.gateway.commands.tail import AGAIN, Shown, newest_run

if TYPE_CHECKING:
    from runstream.gateway.commands.events import Event

__all__ = ["command"]

command = typer.Typer(**PLAIN)

RETRY_SECONDS: Final = 0.2


@command.command(epilog=OF_CLIENTS)
def replay(  # noqa: PLR0917  # typer reads options off the parameters
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="A run; or a conversation or an agent: its newest run.")],
    speed: Annotated[str, typer.Option(help="1x: as it went; 10x; 0.5x; max: at once.")] = "1x",
    as_json: AsJson = False,  # noqa: FBT002  # typer's way
    patience: Patience = 60.0,
    url: Url = GATEWAY_URL,
    key_file: Key = None,
) -> None:
    """Show a run again as it went, in its own time. One that goes on is then followed."""
    shown = Shown(as_json=as_json, again=given_again(context, *AGAIN))
    raise SystemExit(run(_replay(Client(url, key_file), target, shown, speed=speed, patience=patience)))


async def _replay(client: Client, target: str, shown: Shown, *, speed: str, patience: float) -> Exit:
    """Show each event when its time has come; returns what became of the run."""
    pace = Pace(speed_of(speed))
    async with client:
        run_id = await newest_run(client, target, patience)
        timing = _Timing(client, run_id, pace, patience)
        follower = Follower(client, run_id, patience_seconds=patience, away=shown.away)
        with shown.resumable(run_id):
            async with aclosing(follower.events()) as events:
                async for event in events:
                    await timing.wait(event)
                    shown.show(event)
        return shown.outcome


class _Timing:
    """Waits until an event's time has come, and asks for times where it has none."""

    def __init__(self, client: Client, run_id: str, pace: Pace, patience_seconds: float) -> None:
        self._client = client
        self._path = f"/v1/runstream/runs/{run_id}/outline"
        self._pace = pace
        self._patience_seconds = patience_seconds
        self._asked = 0
        """The last sequence whose time was told."""
        self._began: float | None = None

    async def wait(self, event: Event) -> None:
        """Return when the event is to be shown: at once if it was not stored."""
        if self._began is None:
            self._began = time.monotonic()
        if event.id is None:
            return
        seq = int(event.id)
        deadline = time.monotonic() + self._patience_seconds
        while not self._pace.knows(seq):
            await self._ask(deadline)
        await asyncio.sleep(max(0.0, self._began + self._pace.seconds(seq) - time.monotonic()))

    async def _ask(self, deadline: float) -> None:
        try:
            outline = await self._client.ask("GET", self._path, query={"starting_after": str(self._asked)})
            failure: CommandError = Failed("The times of this run are not told: retention has removed them meanwhile.")
        except Unreachable as error:
            outline, failure = {"seq_ids": []}, error
        if outline["seq_ids"]:
            self._pace.learn(outline["seq_ids"], outline["stored_at_ms"])
            self._asked = outline["seq_ids"][-1]
        elif time.monotonic() > deadline:
            raise failure
        else:
            await asyncio.sleep(RETRY_SECONDS)
