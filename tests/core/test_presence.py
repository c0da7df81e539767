"""Whether a broker answers that it is there: from the moment it says that it is ready, until it leaves."""

from runstream.broker.connection import Connection
from runstream.broker.presence import Presence, announce, anybody_there
from tests.support.core import Core


async def test_a_broker_that_is_ready_is_heard_at_once(core: Core) -> None:
    """Whoever has waited for it finds it, and not a moment later."""
    async with Connection(core.settings.nats_url, name="asker") as asker:
        await anybody_there(asker, seconds=5)
        for _ in range(200):
            announced = await announce(core.connection, Presence(forwards_credentials=True))
            assert await anybody_there(asker, seconds=5) == Presence(forwards_credentials=True)
            await announced.close()
            assert await anybody_there(core.connection, seconds=5) is None
