"""What `runstream up` tells people to try, so that it works as it stands: with this agent, and this authentication."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pathlib import Path

    from runstream.broker.agents.loading import AgentSource
    from runstream.broker.auth.settings import AuthSettings

__all__ = ["welcome"]

WELCOME: Final = """
runstream is up.{console}
What to try next, in another terminal:
{credential}
  # {start}
  curl -N {url}/v1/agents/{agent_id}/messages{authorization} \\
    -H 'Content-Type: application/json' \\
    -d '{body}'

  # Go on where you were: the run_id and the last seq_id stand in each line you saw.
  curl -N {url}/v1/runs/RUN_ID/stream{authorization} \\
    -H 'Content-Type: application/json' -d '{{"starting_after": SEQ_ID}}'

  # The same, as a person reads it; it comes back by itself.
  {key}{program} tail RUN_ID --url {url}

Ctrl-C stops it. Runs are kept in {where} and survive a restart.
"""

ANY_AGENT: Final = "agent-123e4567-e89b-42d3-8456-426614174000"
KEY: Final = "RUNSTREAM_KEY=$TOKEN "
AUTHORIZATION: Final = ' -H "Authorization: Bearer $TOKEN"'
STATIC: Final = "A key, whose line is in {file}: {program} keys new --scope 'runs:read runs:write' makes one."
SIGNED: Final = "A token for ten minutes, signed as RUNSTREAM_AUTH_SECRET_FILE and the like say here."
ISSUED: Final = "A token with the scopes runs:read and runs:write, of {issuer}."


def welcome(
    url: str,
    agent: AgentSource,
    auth: AuthSettings,
    *,
    program: str,
    is_demo: bool,
    has_console: bool,
    data_dir: Path | None,
) -> str:
    """Say what to try at `url`, with `program`, as it can be called. `data_dir` None: the runs are in another NATS."""
    url = _reachable(url)
    if is_demo:
        start = "A run of 50 chunks, one every 200 ms; break it off with Ctrl-C whenever you like."
        body = r'{"streaming": true, "background": true, "input": "{\"chunks\": 50, \"interval_ms\": 200}"}'
    else:
        start = "A run that can be resumed; break it off with Ctrl-C whenever you like."
        body = '{"streaming": true, "background": true, "input": "What is a stream?"}'
        if agent.letta is not None:
            start += " AGENT_ID is one of your platform's."
    return WELCOME.format(
        url=url,
        console=f" Its console is {url}/console" if has_console else "",
        credential=_credential(auth, program),
        start=start,
        agent_id="AGENT_ID" if agent.letta is not None else ANY_AGENT,
        authorization="" if auth.auth == "none" else AUTHORIZATION,
        key="" if auth.auth == "none" else KEY,
        program=program,
        body=body,
        where="NATS" if data_dir is None else data_dir,
    )


def _reachable(url: str) -> str:
    """Return an URL that can be opened on this machine: an unspecified address, as 0.0.0.0, is all of its own."""
    parts = urlsplit(url)
    try:
        is_unspecified = ip_address(parts.hostname or "").is_unspecified
    except ValueError:
        return url
    return parts._replace(netloc=f"localhost:{parts.port}").geturl() if is_unspecified else url


def _credential(auth: AuthSettings, program: str) -> str:
    """Say where a credential comes from, where one is asked for."""
    match auth.auth:
        case "none":
            return ""
        case "static":
            says, how = STATIC.format(file=auth.auth_keys_file, program=program), "rsk_…"
        case _ if auth.auth_secret_file is not None:
            says, how = SIGNED, f"$({program} keys token --scope 'runs:read runs:write')"
        case _:
            says, how = ISSUED.format(issuer=auth.auth_issuer), "…"
    return f"\n  # {says}\n  TOKEN={how}\n"
