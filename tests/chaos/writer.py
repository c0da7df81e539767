"""A process of the load that writes: it keeps so many runs going, of all kinds, until SIGTERM, and then finishes them.

    python -m tests.chaos.writer --directory D --name w1 --nats-url URL --broker b1=URL --gateway g1=URL --runs 10

It says `ready` when it begins. SIGKILL is what else may happen to it: then its library runs are lost, and rightly.
"""

import argparse
import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from runstream.broker.errors import Unavailable
from runstream.broker.runs import Runs
from tests.chaos.follower import session_of
from tests.chaos.history import Recorder
from tests.chaos.plans import Broker, Plans
from tests.chaos.processes import Tasks, arguments, own_name, run
from tests.chaos.writing import Writing

PAUSE_SECONDS = 0.3


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = arguments("write runs")
    parser.add_argument("--nats-url", help="for the library")
    parser.add_argument("--broker", type=lambda text: Broker(*text.split("=", 1)), action="append", default=[])
    parser.add_argument("--modes", default="library,ingest,capture")
    parser.add_argument("--runs", type=int, default=6, help="how many go on at one time")
    parser.add_argument("--longest", type=int, default=400, help="chunks of a run, at most")
    parser.add_argument("--slowest", type=float, default=0.2, help="seconds between two requests, at most")
    parser.add_argument("--lasting", type=float, default=12.0, help="seconds of a run, at most, if nothing delays it")
    return parser.parse_args()


async def main(options: argparse.Namespace, stopping: asyncio.Event) -> None:
    """Write until `stopping`."""
    name = own_name(options.name)
    chance = random.Random(f"{options.seed} {options.name}")
    modes = options.modes.split(",")
    plans = Plans(
        random.Random(f"{options.seed} {options.name} plans"),
        modes,
        lambda number: f"{name}n{number}",
        longest=options.longest,
        slowest=options.slowest,
        lasting=options.lasting,
    )
    tasks = Tasks()
    with (
        Recorder(options.directory, "writer", name) as recorder,
        Recorder(options.directory, "reader", name) as reading,
    ):
        async with session_of(options.silence) as session, _library(options, modes, stopping) as runs:
            writing = Writing(
                session,
                recorder,
                reading,
                chance,
                name=name,
                brokers=options.broker,
                gateways=options.gateway,
                runs=runs,
            )

            async def keep_writing() -> None:
                while not stopping.is_set():
                    await writing.write(plans.next())
                    await asyncio.sleep(PAUSE_SECONDS * chance.random())

            print("ready", flush=True)
            async with tasks.finished(options.patience, stopping):
                for number in range(options.runs):
                    tasks.start(keep_writing(), f"runs-{number}")


@contextlib.asynccontextmanager
async def _library(
    options: argparse.Namespace, modes: list[str], stopping: asyncio.Event
) -> AsyncIterator[Runs | None]:
    """Enter the library, if it is asked for, as soon as NATS is there."""
    async with contextlib.AsyncExitStack() as stack:
        runs = None
        while "library" in modes and runs is None and not stopping.is_set():
            try:
                runs = await stack.enter_async_context(Runs(options.nats_url))
            except Unavailable:
                await asyncio.sleep(PAUSE_SECONDS)
        yield runs


if __name__ == "__main__":
    run(main, parsed())
