"""What the load is to do, drawn from a seed: which runs there are, and what their writers do to them."""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from tests.chaos.content import MAX_PADDING, texts_of
from tests.chaos.history import Mode


class Broker(NamedTuple):
    """A broker as writers reach it, and the name by which faults call it."""

    name: str
    url: str


class Plan(msgspec.Struct, frozen=True):
    """One run as it is meant to be."""

    token: str
    mode: Mode
    count: int
    interval: float
    """Seconds from one request to the next."""
    at_once: int
    """Chunks that are sent together."""
    padding: int
    background: bool = True
    cancel_at: int | None = None
    """After how many chunks somebody cancels it; of a captured run, after so many intervals."""
    is_upload: bool = False
    """Of an ingested run: whether its chunks are lines of one long request."""

    def texts(self, first: int, count: int) -> list[str]:
        """What its chunks say, from `first` on, as far as there are any."""
        return texts_of(self.token, first, max(min(count, self.count - first), 0), self.padding)


class Plans:
    """An endless supply, no two with the same token."""

    def __init__(
        self,
        chance: random.Random,
        modes: Sequence[Mode],
        token: Callable[[int], str],
        *,
        longest: int,
        slowest: float,
        lasting: float,
    ) -> None:
        self._chance, self._modes, self._token = chance, modes, token
        self._longest, self._slowest, self._lasting = longest, slowest, lasting
        self._made = 0

    def next(self) -> Plan:
        """Draw one: most runs are short or slow, some are long and fast, and few have large chunks."""
        chance = self._chance
        self._made += 1
        mode = chance.choice(self._modes)
        count = int(self._longest ** chance.uniform(0.3, 1.0))
        at_once = chance.choice([1, 1, 1, 7, 50])
        interval = chance.choice([0.0, self._slowest / 20, self._slowest / 5, self._slowest * chance.random()])
        is_cancelled = chance.random() < 0.1
        return Plan(
            token=self._token(self._made),
            mode=mode,
            count=count,
            interval=min(interval, self._lasting * (at_once if mode != "capture" else 1) / count),
            at_once=at_once,
            padding=chance.choice([0, 20, 20, 400, 400, MAX_PADDING if count < 100 else 2000]),
            background=mode != "capture" or chance.random() < 0.8,
            cancel_at=chance.randrange(count) if is_cancelled and interval else None,
            is_upload=chance.random() < 0.3,
        )
