"""Whether those who answer for the streams still lead them: what is refused for good must not rest on what is over.

A leader that is cut off from the others goes on answering reads for ten seconds and more, as if nothing had been stored
since (measured with nats-server 2.15.1). Writes are safe, as they need a majority, and what is there is there. But what
it says is *not* there may be, and whoever is told 404 or 409 does not come back.

The invariant: *what is read within `LOOKING_SECONDS` after a confirmation is read from the leader.* A leader that has
heard from a majority within `FRESH_SECONDS` was not replaced by then: its followers elect another only after four
seconds without it, and what this takes adds up to no more: its word is as old when it gives it, on its way for
`ASKING_SECONDS`, good for `GOOD_FOR_SECONDS`, and then somebody looks. The word of one that is alone does not grow old.
Left out is a follower that votes for a third which does not hear it: the leader is told so in the next heartbeat, a
second later at most. What was read *before* a confirmation need not be so: it may have been read on the other side of a
gap that has closed meanwhile. So what is not found is looked for again (`sure`).

Two connections may have two servers, on either side of a gap: what was read over one is confirmed over the same, and
who has two confirms over both.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from runstream.broker.errors import BrokerError, Unavailable
from runstream.broker.log import last_of
from runstream.broker.topology import INDEX_STREAM, streams_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from runstream.broker.jetstream import JetStream
    from runstream.broker.messages import StoredMessage
    from runstream.broker.settings import BrokerSettings
    from runstream.broker.topology import LogAddress

__all__ = ["Leaders", "has_majority", "surely_last"]

T = TypeVar("T")

FRESH_SECONDS: Final = 2.0
"""Two heartbeats. With the three below, the four seconds after which followers elect another at the earliest."""
ASKING_SECONDS: Final = 1.0
"""How long the answer of a leader may take that can be replaced. Whether any can is not known before the first answer,
which is waited for as long as any other of JetStream's."""
GOOD_FOR_SECONDS: Final = 0.5
"""How long a confirmation is good for: questions after what there is not must not become a load."""
LATE: Final = "The leaders do not say in time whether they still are."
LOOKING_SECONDS: Final = 0.5
"""How long it may take to find, after a confirmation, that something is not there."""


class Leaders:
    """Confirms that streams are read from their leaders, as connections have them."""

    def __init__(self, streams: Sequence[str], *jetstreams: JetStream) -> None:
        self._asked = [(jetstream, stream) for jetstream in jetstreams for stream in streams]
        self._asking = asyncio.Lock()
        self._answered_at = -GOOD_FOR_SECONDS
        self._doubt: str | None = None
        self._is_replaceable = False
        """Whether anybody else could lead any of them: once seen it stays, as somebody may be looking."""

    @classmethod
    def of_all(cls, settings: BrokerSettings, *jetstreams: JetStream) -> Leaders:
        """Make what confirms the index and the logs."""
        streams = [name for name in streams_of(settings) if name == INDEX_STREAM or name.startswith("RUNS_")]
        return cls(streams, *jetstreams)

    async def sure(self, look: Callable[[], Awaitable[T]], *absent: type[Exception]) -> T:
        """Look for something, and again before one of the errors is believed that say that it is not there.

        Raises as `look`, and `Unavailable`. A `BrokerError` among those then says that it is sure.
        """
        try:
            return await look()
        except absent:
            pass
        return await self.again(look, *absent)

    async def again(self, look: Callable[[], Awaitable[T]], *absent: type[Exception]) -> T:
        """Look for what was not found where nobody had confirmed it. Raises as `sure`."""
        await self.confirm()
        since = time.monotonic()
        try:
            return await look()
        except absent as error:
            if self._is_replaceable and time.monotonic() - since > LOOKING_SECONDS:
                raise Unavailable("It took too long to find that something is not there.") from error
            if isinstance(error, BrokerError):
                error.is_sure = True
            raise

    async def confirm(self) -> None:
        """Return if what is read now is read from leaders. Raises `Unavailable`."""
        async with self._asking:
            if time.monotonic() - self._answered_at > GOOD_FOR_SECONDS:
                self._doubt = await self._ask()
                # From its end: whoever has waited for an answer need not wait for another.
                self._answered_at = time.monotonic()
        if self._doubt is not None:
            raise Unavailable(self._doubt)

    async def _ask(self) -> str | None:
        """Say why what is read may not be the leaders'; None: it is."""
        since = time.monotonic()
        try:
            async with asyncio.timeout(ASKING_SECONDS if self._is_replaceable else None):
                doubts = await asyncio.gather(*(self._ask_of(*asked) for asked in self._asked))
        except TimeoutError:
            return LATE
        # Of what nobody else can lead, the word is as good when it comes late: a busy machine is no reason to refuse.
        is_late = self._is_replaceable and time.monotonic() - since > ASKING_SECONDS
        return next(filter(None, doubts), LATE if is_late else None)

    async def _ask_of(self, jetstream: JetStream, stream: str) -> str | None:
        try:
            info = await jetstream.api(f"STREAM.INFO.{stream}", None)
        except BrokerError as error:  # Raised, the questions beside it would be nobody's.
            return f"What leads {stream} does not say whether it still does. {error}"
        self._is_replaceable |= bool((info.get("cluster") or {}).get("replicas"))
        return None if has_majority(info) else f"What leads {stream} has lost the others."


class _Absent(Exception):
    """There is none."""


async def surely_last(jetstream: JetStream, address: LogAddress) -> StoredMessage | None:
    """Return a log's newest message as `last_of`: None only if a leader that was confirmed has none of it.

    Raises `Unavailable`, `BrokenLog`.
    """

    async def look() -> StoredMessage:
        if (found := await last_of(jetstream, address)) is None:
            raise _Absent
        return found

    try:
        return await Leaders([address.stream], jetstream).sure(look, _Absent)
    except _Absent:
        return None


def has_majority(info: Mapping[str, Any]) -> bool:
    """Tell whether a stream's leader has just heard from most of those who have it; one that is alone has itself."""
    others = (info.get("cluster") or {}).get("replicas") or []
    # 0 is what it says of one that it has never heard from.
    heard = [each for each in others if not each.get("offline") and 0 < each["active"] <= FRESH_SECONDS * 1e9]
    return 2 * (1 + len(heard)) > 1 + len(others)
