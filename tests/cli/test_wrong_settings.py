"""A setting with a value that it cannot have is named as whoever set it calls it, and nothing is started."""

import pytest

from tests.support.commands import done

SERVICES = ["up", "broker", "gateway", "provision"]


@pytest.mark.parametrize("service", SERVICES)
async def test_one_of_the_environment_is_named_by_its_variable(service: str) -> None:
    """Whoever set it may have set others beside it, and looks for that name."""
    refused = await done(service, env={"RUNSTREAM_NATS_URL": "ftp://nats"})
    assert refused.code == 2
    assert "RUNSTREAM_NATS_URL: " in refused.complaint


@pytest.mark.parametrize("service", SERVICES)
async def test_an_option_is_named_as_such(service: str) -> None:
    """Not by the variable that it stands in for."""
    refused = await done(service, "--nats-url", "ftp://nats")
    assert refused.code == 2
    assert " nats_url: " in refused.complaint
