"""A gateway in a process of its own, to be killed: `<nats url>`. Says `ready <url>` when it serves."""

import asyncio
import sys

from runstream.broker.settings import BrokerSettings, resolved
from runstream.gateway.app import Gateway
from runstream.gateway.settings import GatewaySettings
from tests.support.stack import listener, url_of


async def main(nats_url: str) -> None:
    """Serve until killed."""
    bound = listener()
    async with Gateway(resolved(GatewaySettings), BrokerSettings(nats_url=nats_url), listener=bound):
        print(f"ready {url_of(bound)}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
