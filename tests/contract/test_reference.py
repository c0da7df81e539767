"""The reference of HTTP is written from the documents that the two ports serve."""

from deploy.reference.http import documents
from tests.support.http import fetch
from tests.support.stack import Stack


async def test_it_is_written_from_what_is_served(stack: Stack) -> None:
    """Both documents are, word for word, what `GET /openapi.json` answers."""
    gateway, broker = documents()
    assert (await stack.fetch("GET", "/openapi.json")).json == gateway
    assert (await fetch(stack.broker_base, "GET", "/openapi.json")).json == broker
