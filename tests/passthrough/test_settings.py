"""Which platform a gateway passes on to, as its settings and its agent say."""

from pathlib import Path

import pytest

from runstream.broker.agents.http_platform import Platform
from runstream.broker.agents.loading import agent_source
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.errors import InvalidSettings
from runstream.broker.settings import resolved
from runstream.gateway.settings import GatewaySettings
from runstream.gateway.upstream import Upstream, platform_at
from tests.support.http import fetch
from tests.support.platform import ToyLetta
from tests.support.processes import running, runstream


def root_of(url: str | None, agent: str = "demo") -> str | None:
    found = platform_at(url, default=agent_source(agent, UpstreamSettings()).letta)
    return None if found is None else found.root


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://letta:8283", "http://letta:8283"),
        ("http://letta:8283/", "http://letta:8283"),
        ("http://letta:8283/v1/", "http://letta:8283"),
        ("https://Company.example/letta/v1", "https://company.example/letta"),
        ("http://company.example/letta", "http://company.example/letta"),
        ("http://[::1]:8283/v1", "http://[::1]:8283"),
        ("none", None),
        (None, None),
    ],
)
def test_root(url: str | None, root: str | None) -> None:
    """With or without a last /v1; what the setting says wins over the agent."""
    assert root_of(url) == root
    if url is not None:
        assert root_of(url, "http://other:1") == root


@pytest.mark.parametrize(
    ("agent", "root"),
    [
        ("http://letta:8283", "http://letta:8283"),
        ("http://letta/v1", "http://letta"),
        ("http://letta/chat", None),
        ("demo", None),
    ],
)
def test_a_letta_platform_that_is_the_agent_is_the_upstream(agent: str, root: str | None) -> None:
    """Where the agent is one endpoint, or none of a platform's, nothing is passed on."""
    assert root_of(None, agent) == root


@pytest.mark.parametrize("url", ["letta:8283", "ftp://letta", "http://", "http://user:hunter2@letta", "http://letta:0"])
def test_urls_that_are_none(url: str) -> None:
    """They are refused at the start, by the name of the setting, without what may be secret in them."""
    with pytest.raises(InvalidSettings, match=r"^A setting is not valid\. upstream: Its URL ") as caught:
        platform_at(url)
    assert "hunter2" not in str(caught.value)


def test_a_token_that_cannot_be_read(tmp_path: Path) -> None:
    """It is said at the start."""
    with pytest.raises(InvalidSettings, match=r"RUNSTREAM_UPSTREAM_AUTH: the file .* cannot be read"):
        Upstream(Platform("http://letta"), UpstreamSettings(auth=str(tmp_path / "none")))


@pytest.mark.parametrize("url", ["http://letta/v1?api_key=hunter2", "http://letta?x=hunter2"])
def test_a_url_with_a_query(url: str) -> None:
    """Platforms repeat it in redirects and links, which clients get: it is refused at the start, and not shown."""
    with pytest.raises(
        InvalidSettings, match=r"upstream: Its URL has a query, .* RUNSTREAM_UPSTREAM_HEADERS"
    ) as caught:
        Upstream(Platform(url), UpstreamSettings())
    assert "hunter2" not in str(caught.value)


def test_the_setting_is_not_shown() -> None:
    """What stands behind its path may be a key."""
    assert "hunter2" not in repr(resolved(GatewaySettings, {"upstream": "http://letta?key=hunter2"}))


async def test_up_in_front_of_a_letta_platform(tmp_path: Path) -> None:
    """One flag: its agents are there, and its answers are runstream's runs, all of them resumable if that is wished."""
    toy = ToyLetta()
    async with toy.running() as url:
        argv = runstream("up", "--port", "0", "--broker-port", "0", "--data-dir", tmp_path, "--agent", url)
        async with running(*argv, "--background", "always") as process:
            base = (await process.wait_for_line("^ready ", 30)).split()[1]
            agent = await fetch(base, "GET", f"/v1/agents/{toy.agent_id}")
            assert agent.json["name"] == "toy"
            reply = await fetch(base, "POST", f"/v1/conversations/{toy.conversation()}/messages", json={"input": "hi"})
            assert b'"seq_id":null' not in reply.body


async def test_a_separate_gateway_has_to_be_told(nats_url: str) -> None:
    """By --upstream."""
    toy = ToyLetta()
    async with toy.running() as url:
        argv = runstream("gateway", "--port", "0", "--nats-url", nats_url, "--upstream", f"{url}/v1")
        async with running(*argv) as process:
            base = (await process.wait_for_line("^ready ", 30)).split()[1]
            assert (await fetch(base, "GET", f"/v1/agents/{toy.agent_id}")).status == 200


@pytest.mark.parametrize("command", ["gateway", "up"])
async def test_a_wrong_url_keeps_it_from_starting(command: str, tmp_path: Path) -> None:
    """It is said in one line, before anything is started."""
    async with running(*runstream(command, "--upstream", "letta:8283"), cwd=tmp_path) as process:
        assert await process.wait() == 2
        said = "runstream: A setting is not valid. upstream: Its URL names no host: write it as http://platform:8283."
        assert (process.lines, process.errors) == ([], [said])
