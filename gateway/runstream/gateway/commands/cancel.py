"""`runstream cancel`: ends a run that goes on."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

import typer

from runstream.gateway.commands.client import Client
from runstream.gateway.commands.exits import OF_CLIENTS, Failed, run
from runstream.gateway.commands.options import PLAIN, AsJson, Key, Url
from runstream.gateway.commands.settings import GATEWAY_URL
from runstream.gateway.commands.tail import newest_run

__all__ = ["command"]

command = typer.Typer(**PLAIN)

ENDED: Final = frozenset({"completed", "failed", "cancelled"})


@command.command(epilog=OF_CLIENTS)
def cancel(
    target: Annotated[str, typer.Argument(help="A run; or a conversation or an agent: its newest run.")],
    as_json: AsJson = False,  # noqa: FBT002  # typer's way
    url: Url = GATEWAY_URL,
    key_file: Key = None,
) -> None:
    """Cancel a run. Exit code 0 once it is cancelled, or was already, and 1 if it has ended otherwise, and stays so."""
    run(_cancel(Client(url, key_file), target, as_json=as_json))


async def _cancel(client: Client, target: str, *, as_json: bool) -> None:
    """Cancel the run, unless it has ended, and say what became of it. Raises `Failed` if it is not cancelled."""
    async with client:
        path = f"/v1/runs/{await newest_run(client, target)}"
        found: dict[str, Any] = await client.ask("GET", path)
        has_ended = found["status"] in ENDED
        if not has_ended:
            agent = f"/v1/agents/{found['agent_id']}/messages/cancel"
            await client.ask("POST", agent, body={"run_ids": [found["id"]]})
            found = await client.ask("GET", path)
    is_cancelled = found["status"] == "cancelled"
    if as_json or is_cancelled:
        said = f"{found['id']} {'was cancelled already' if has_ended else 'is cancelled'}"
        typer.echo(json.dumps(found) if as_json else said)
    if is_cancelled:
        return
    if found["status"] in ENDED:
        raise Failed(f"{found['id']} {'had' if has_ended else 'has'} ended already: it is {found['status']}.")
    raise Failed(f"{found['id']} is to be cancelled, and goes on yet: no broker is there, or NATS is away.")
