"""Web pages of other origins, where everybody is asked who they are: preflights, and refusals that a page can read."""

from pathlib import Path

from runstream.schemas import new_run_id
from tests.support.auth import Client, KeyFile
from tests.support.stack import stack_running

ORIGIN = "https://app.example"


async def test_a_page_asks_first_and_is_told_why_not(nats_url: str, tmp_path: Path) -> None:
    """A preflight has no credential and needs none; a refusal says to its page what is missing."""
    keys = KeyFile(tmp_path / "keys")
    key = keys.add(scopes="runs:read")
    async with stack_running(nats_url, auth=keys.settings, gateway={"cors_origins": ORIGIN}) as stack:
        nobody = Client(stack.base, None)
        path = f"/v1/runs/{new_run_id()}"
        asks = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
        preflight = await nobody.fetch("OPTIONS", path, headers=asks)
        assert preflight.status == 204
        assert "Authorization" in preflight.headers["access-control-allow-headers"]
        for client, status in ((nobody, 401), (Client(stack.base, key), 404)):
            reply = await client.fetch("GET", path, headers={"Origin": ORIGIN})
            assert reply.status == status
            assert reply.headers["access-control-allow-origin"] == ORIGIN
            assert "WWW-Authenticate" in reply.headers["access-control-expose-headers"]
