"""A process of the load that reads: it follows the runs that writers have recorded, late, in pieces, or not to the end.

    python -m tests.chaos.reader --directory D --name r1 --gateway g1=URL --gateway g2=URL --followers 200

It says `ready` when it begins. After SIGTERM, which comes when the writers are through, it reads all that is left to
the end, and once more, from its beginning, each run that nobody here has read as a whole.
"""

import argparse
import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence

import aiohttp

from tests.chaos.follower import Follower, Whim, session_of
from tests.chaos.history import Opened, ReaderKind, Recorder, Watch
from tests.chaos.letta_follower import Clients, LettaFollower
from tests.chaos.processes import Tasks, arguments, own_name, run

LOOK_SECONDS = 0.2
LATE_SECONDS = 5.0
LETTA_CLIENTS_EVERY = 12
"""One reader in so many uses Letta's own client, which takes ten times as long for an event."""
AUDITS_AT_ONCE = 16
"""Runs that are read once more at one time: it is not the load any longer."""


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = arguments("read runs")
    parser.add_argument("--followers", type=int, default=100, help="readers at one time, at most")
    parser.add_argument("--each", type=float, default=3.0, help="readers of a run, on average")
    parser.add_argument("--longest-stall", type=float, default=3.0, help="seconds in which a reader reads nothing")
    return parser.parse_args()


class Readers:
    """The followers of one process."""

    def __init__(
        self,
        options: argparse.Namespace,
        recorder: Recorder,
        session: aiohttp.ClientSession,
        clients: Clients,
        stopping: asyncio.Event,
    ) -> None:
        self._options, self._recorder, self._stopping = options, recorder, stopping
        self._session, self._clients = session, clients
        self._name = own_name(options.name)
        self._chance = random.Random(f"{options.seed} {options.name}")
        self._watch = Watch(options.directory, [Opened])
        self._runs: dict[str, Opened] = {}
        self._followers: set[Follower | LettaFollower] = set()
        self._made = 0
        self._whole: set[str] = set()
        self._cursors: defaultdict[str, int] = defaultdict(int)
        self.tasks = Tasks()

    async def keep_reading(self) -> None:
        """Follow what is opened, until it is time to finish; then see that all has been read."""
        while not self._stopping.is_set():
            for opened in self._news():
                for _ in range(self._how_many()):
                    self.tasks.start(self._come(opened), f"reader of {opened.run_id}")
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._stopping.wait()
            except TimeoutError:
                continue
        for follower in self._followers:
            follower.hurries.set()
        self._news()
        await self._audit()

    def _news(self) -> list[Opened]:
        """Give the runs that were opened since, those that can be read by others than who asked for them."""
        found = [opened for opened in self._watch.news() if isinstance(opened, Opened) and opened.background]
        self._runs.update({opened.token: opened for opened in found})
        return found

    def _how_many(self) -> int:
        room: int = self._options.followers - len(self.tasks)
        drawn = round(self._chance.expovariate(1 / self._options.each))
        return max(min(max(drawn, 1), room), 0)

    async def _come(self, opened: Opened) -> None:
        """Follow a run, at once or later, from its beginning or from where another was."""
        delay = self._chance.choice([0.0, 0.0, self._chance.uniform(0, LATE_SECONDS)])
        try:
            async with asyncio.timeout(delay):
                await self._stopping.wait()
        except TimeoutError:
            pass
        after = self._cursor_in(opened.token) if self._chance.random() < 0.2 else 0
        kind = self._kind()
        await self._follow(opened, kind, 0 if kind == "letta_client" else after, self._whims())

    def _kind(self) -> ReaderKind:
        if self._made % LETTA_CLIENTS_EVERY == 1:
            return "letta_client"
        return self._chance.choice(["letta", "event_source"])

    def _cursor_in(self, token: str) -> int:
        """Where a reader of the run is, or was last: whoever comes may begin there, as another device does."""
        return max((each.last_chunk for each in self._followers if each.token == token), default=self._cursors[token])

    def _whims(self) -> list[Whim]:
        chance, longest = self._chance, self._options.longest_stall
        whims = [
            Whim(int(chance.expovariate(1 / 60)), chance.choice(["away", "away", "stall"]), chance.uniform(0, longest))
            for _ in range(chance.choice([0, 0, 1, 3]))
        ]
        if chance.random() < 0.1:
            whims.append(Whim(int(chance.expovariate(1 / 100)), "leave"))
        return sorted(whims)

    async def _follow(self, opened: Opened, kind: ReaderKind, after: int = 0, whims: Sequence[Whim] = ()) -> None:
        self._made += 1
        follower = self._reader(opened, kind, after, whims)
        if self._stopping.is_set():
            follower.hurries.set()
        self._followers.add(follower)
        try:
            await follower.follow()
        finally:
            self._followers.discard(follower)
        if follower.last_chunk:
            self._cursors[opened.token] = follower.last_chunk
        if follower.is_done and not after:
            self._whole.add(opened.token)

    def _reader(self, opened: Opened, kind: ReaderKind, after: int, whims: Sequence[Whim]) -> Follower | LettaFollower:
        name = f"{self._name}-{self._made}"
        if kind == "letta_client":
            return LettaFollower(
                self._clients, self._recorder, self._chance, name=name, token=opened.token, run_id=opened.run_id
            )
        return Follower(
            self._session,
            self._recorder,
            self._options.gateway,
            self._chance,
            name=name,
            token=opened.token,
            run_id=opened.run_id,
            kind=kind,
            after=after,
            whims=whims,
        )

    async def _audit(self) -> None:
        """Read as a whole what was not."""
        while len(self.tasks) > 1:  # This is one.
            await asyncio.sleep(LOOK_SECONDS)
        unread = [opened for token, opened in self._runs.items() if token not in self._whole]

        async def keep_following() -> None:
            while unread:
                await self._follow(unread.pop(), self._kind())

        async with asyncio.TaskGroup() as group:
            for _ in range(AUDITS_AT_ONCE):
                group.create_task(keep_following())


async def main(options: argparse.Namespace, stopping: asyncio.Event) -> None:
    """Read until `stopping`, and then to the end."""
    with Recorder(options.directory, "reader", own_name(options.name)) as recorder:
        async with session_of(options.silence) as session, Clients(options.gateway, options.silence) as clients:
            readers = Readers(options, recorder, session, clients, stopping)
            print("ready", flush=True)
            async with readers.tasks.finished(options.patience, stopping):
                readers.tasks.start(readers.keep_reading(), "reading")


if __name__ == "__main__":
    run(main, parsed())
