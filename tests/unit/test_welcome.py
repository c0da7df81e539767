"""What `runstream up` tells people works where they are told it."""

from pathlib import Path
from typing import Any

import pytest

from runstream.broker.agents.loading import agent_source
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.auth.settings import AuthSettings
from runstream.gateway.welcome import welcome

URL = "http://127.0.0.1:8283"


def told(
    agent: str = "demo",
    data_dir: Path | None = Path("data"),
    *,
    url: str = URL,
    program: str = "runstream",
    has_console: bool = True,
    **auth: Any,
) -> str:
    return welcome(
        url,
        agent_source(agent, UpstreamSettings()),
        AuthSettings(**auth),
        program=program,
        is_demo=agent == "demo",
        has_console=has_console,
        data_dir=data_dir,
    )


def test_the_console_is_named_unless_it_is_switched_off() -> None:
    """Where a browser finds it; a page that is not there is named to nobody."""
    assert f"{URL}/console" in told()
    assert "console" not in told(has_console=False)


def test_commands_are_named_as_they_can_be_called() -> None:
    """Who has started it out of a folder has it on no path of programs."""
    text = told(program=".venv/bin/runstream", auth="static", auth_keys_file=Path("keys"))
    assert ".venv/bin/runstream tail RUN_ID" in text
    assert ".venv/bin/runstream keys new" in text
    assert " runstream " not in text.replace("runstream is up", "")


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "[::]"])
def test_who_listens_everywhere_is_named_as_a_browser_finds_it(everywhere: str) -> None:
    """Nothing can be opened at an address that stands for all; another one is left as it is."""
    text = told(url=f"http://{everywhere}:8283")
    assert "http://localhost:8283/console" in text
    assert everywhere not in text
    assert "http://10.0.0.1:8283/console" in told(url="http://10.0.0.1:8283")


def test_the_demo_is_shown_what_it_can_do() -> None:
    """With its knobs, and without a credential, as none is asked for."""
    asked = '{"streaming": true, "background": true, "input": "{\\"chunks\\": 50, \\"interval_ms\\": 200}"}'
    assert asked in told()
    assert "Bearer" not in told()
    assert f"curl -N {URL}/v1/agents/agent-" in told()
    assert f"\n  runstream tail RUN_ID --url {URL}\n" in told()
    assert "kept in data and survive" in told()


@pytest.mark.parametrize(("agent", "agent_id"), [("http://a/chat", "agent-"), ("http://a:8283", "AGENT_ID/")])
def test_no_other_agent_is_said_to_be_the_demo(agent: str, agent_id: str) -> None:
    """It is asked a question; of a Letta platform's agents nobody here knows one."""
    assert "chunks" not in told(agent)
    assert f"{URL}/v1/agents/{agent_id}" in told(agent, data_dir=None)
    assert "kept in NATS" in told(agent, data_dir=None)


@pytest.mark.parametrize(
    ("auth", "where"),
    [
        ({"auth": "static", "auth_keys_file": "keys"}, "runstream keys new --scope 'runs:read runs:write'"),
        ({"auth": "jwt", "auth_secret_file": "secret"}, "TOKEN=$(runstream keys token --scope 'runs:read runs:write')"),
        ({"auth": "jwt", "auth_jwks": "https://i/jwks", "auth_issuer": "https://i"}, "of https://i."),
    ],
)
def test_where_a_credential_is_asked_for_it_is_sent(auth: dict[str, Any], where: str) -> None:
    """Every line has it, and it is said where it comes from."""
    text = told(**auth)
    assert where in text
    assert "RUNSTREAM_KEY=$TOKEN runstream tail RUN_ID" in text
    assert text.count('-H "Authorization: Bearer $TOKEN"') == text.count("curl") == 2
