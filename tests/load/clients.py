"""Clients that open a stream, read a little or nothing, and close: what browsers, proxies and bad networks do."""

import asyncio
import contextlib
import enum
import random
from dataclasses import dataclass, field

from tests.support.eventsource import source_path
from tests.support.http import Connection, Cut
from tests.support.stack import message

AT_ONE_TIME = 64
"""Clients that are at it together; the next one waits."""


class Closing(enum.Enum):
    """How a client leaves."""

    FIN = enum.auto()
    RST = enum.auto()
    HALF = enum.auto()
    """It closes its side, and waits for the gateway to close the other."""


class Reading(enum.Enum):
    """What it reads before that."""

    NOTHING = enum.auto()
    HEAD = enum.auto()
    EVENT = enum.auto()


@dataclass
class Leaving:
    """Clients of one gateway, one as good as another, all seeded."""

    base: str
    agents: list[str]
    """Who is asked by those that create runs."""
    runs: list[str]
    """What the others follow."""
    seed: int = 0
    gone: int = 0
    statuses: set[int] = field(default_factory=set)

    async def come(self, clients: int, per_minute: int) -> float:
        """So many clients, at that rate or as fast as they can; returns the rate, in clients a minute."""
        clock = asyncio.get_running_loop().time
        steps = random.Random(self.seed)
        begun = clock()
        seats = asyncio.Semaphore(AT_ONE_TIME)

        async def one(number: int, dice: random.Random) -> None:
            try:
                await self._one(number, dice)
            finally:
                seats.release()

        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                due = begun + number * 60 / per_minute
                await asyncio.sleep(max(0.0, due - clock()))
                await seats.acquire()
                group.create_task(one(number, random.Random(steps.random())))
        return clients / (clock() - begun) * 60

    async def _one(self, number: int, dice: random.Random) -> None:
        reading, closing = dice.choice(list(Reading)), dice.choice(list(Closing))
        async with Connection.open(self.base) as connection:
            await self._ask(connection, number, dice)
            # Whoever has been cut off by a reset of its own is as gone as it wished to be.
            with contextlib.suppress(Cut, ConnectionError):
                if reading is not Reading.NOTHING:
                    status, _ = await connection.head()
                    self.statuses.add(status)
                if reading is Reading.EVENT:
                    await connection.chunk()
                await self._leave(connection, closing)
        self.gone += 1

    async def _ask(self, connection: Connection, number: int, dice: random.Random) -> None:
        match number % 3:
            case 0:
                said = message({"chunks": 3, "interval_ms": 10})
                await connection.send("POST", f"/v1/agents/{dice.choice(self.agents)}/messages/stream", json=said)
            case 1:
                await connection.send("POST", f"/v1/runs/{dice.choice(self.runs)}/stream", json={})
            case _:
                await connection.send("GET", source_path(dice.choice(self.runs)))

    async def _leave(self, connection: Connection, closing: Closing) -> None:
        """Close; what is left then, nothing but a half-closed connection, is reset by the block's end."""
        match closing:
            case Closing.FIN:
                connection.writer.close()
                await connection.writer.wait_closed()
            case Closing.RST:
                connection.writer.transport.abort()
            case Closing.HALF:
                connection.writer.write_eof()
                while await connection.reader.read(2**16):
                    pass
