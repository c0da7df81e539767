"""Whether messages are answered by the demo agent: what says so, and what does not."""

import pytest

from runstream.broker.agents import Agent
from runstream.broker.agents.demo import demo
from tests.support.stack import Puppet, stack_running


@pytest.mark.parametrize(("agent", "is_demo"), [(demo, True), (Puppet(), False)])
async def test_a_gateway_knows_the_demo_agent(nats_url: str, agent: Agent, is_demo: bool) -> None:
    """A page offers to try it where that is what answers, and nowhere else."""
    async with stack_running(nats_url, agent=agent) as stack:
        assert (await stack.fetch("GET", "/v1/runstream/session")).json["has_demo_agent"] == is_demo
