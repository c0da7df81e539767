"""One reader of very many, and the group that it waits with.

No HTTP library: one request, one buffer that all share, and of what arrives only what `tests.bench.counting` looks for.
"""

import asyncio
import re
import time
from array import array
from collections.abc import Callable, Sequence
from typing import cast

from tests.bench.counting import Lost, newest_cursor, only_chunk, read_block, stamps
from tests.bench.exchange import Refused

BUFFER_BYTES = 256 * 1024
LINE_END = b"\r\n"
"""What ends a chunk of the encoding, behind the event in it: nothing that has to be kept."""
RETRY_AFTER = re.compile(rb"(?i)\r\nretry-after: (\d+)")


class Group:
    """Readers that are counted, and waited for, together. What goes wrong for one is the failure of all."""

    buffer = memoryview(bytearray(BUFFER_BYTES))
    """Whoever is called fills it and empties it, before anybody else is called."""

    def __init__(self, retry: Callable[["Member", float], None] | None = None) -> None:
        self.members: list[Member] = []
        self.retry = retry
        """Called with who is turned away, and the seconds after which it may come back; None: that is a failure."""
        self.turned_away = 0
        self.chunks = self.bytes = 0
        self.delays = array("q")
        self.is_timing = False
        self.failure: Exception | None = None
        self._goal = 0
        self._missing = 0
        self._is_beginning = False
        self._reached = asyncio.Event()

    def restart(self, *, timing: bool) -> None:
        """Count anew; with `timing`, note of each chunk how long it was on its way."""
        self.chunks = self.bytes = self.turned_away = 0
        self.delays = array("q")
        self.is_timing = timing
        for member in self.members:
            member.gap_ns, member.last_ns = 0, time.monotonic_ns()

    def took(self, before: int, after: int) -> None:
        """A member has come from one number to another."""
        if before < self._goal <= after:
            self.arrived()

    def began(self) -> None:
        """A member has the headers of its response."""
        if self._is_beginning:
            self.arrived()

    def arrived(self) -> None:
        """One more has what all are waited for."""
        self._missing -= 1
        if not self._missing:
            self._reached.set()

    def fail(self, error: Exception) -> None:
        """End what is waited for: the first failure counts."""
        self.failure = self.failure or error
        self._reached.set()

    async def reach(self, number: int, seconds: float) -> None:
        """Wait until every member has all chunks before `number`. Raises what went wrong instead."""
        self._goal = number
        await self.arrivals(sum(member.next < number for member in self.members), seconds)

    async def beginnings(self, missing: int, seconds: float) -> None:
        """Wait until so many have begun."""
        self._goal, self._is_beginning = 0, True
        try:
            await self.arrivals(missing, seconds)
        finally:
            self._is_beginning = False

    async def arrivals(self, missing: int, seconds: float) -> None:
        """Wait until so many have arrived."""
        self._missing = missing
        self._reached.clear()
        if missing and self.failure is None:
            try:
                async with asyncio.timeout(seconds):
                    await self._reached.wait()
            except TimeoutError:
                raise Refused(f"{self._missing} of {len(self.members)} are not there after {seconds:g} s") from None
        if self.failure is not None:
            raise self.failure


class Member(asyncio.BufferedProtocol):
    """One reader. `next` is the number of the chunk that it expects, over all responses that it ever asks for."""

    buffer = Group.buffer

    def __init__(self, group: Group, *, per_second: int = 0) -> None:
        self.next = 0
        self.last_ns = self.gap_ns = 0
        self.caught_up_ns = 0
        """When it had a chunk that was made after it had last come back."""
        self._group = group
        self._recent = b""
        self._per_second = self._quota = per_second
        self._transport: asyncio.Transport | None = None
        self._request = self._rest = b""
        self._is_begun = False
        self._asked_ns = 0

    def again(self, request: bytes) -> None:
        """Be about to send this request over a new connection."""
        self._request, self._rest, self._is_begun = request, b"", False

    def come_back(self, request: bytes) -> None:
        """The same, after a loss: its group waits for it to be live again."""
        self.again(request)
        self._asked_ns = time.monotonic_ns()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        return self.buffer[: max(self._quota, 1)] if self._per_second else self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        group = self._group
        group.bytes += nbytes
        data = self.buffer[:nbytes].tobytes()
        if self._per_second:
            self._spend(nbytes)
        if self._is_begun and not self._rest and (only := only_chunk(data)) is not None and only[0] == self.next:
            self._took(data, only[0] + 1, only[1:])
            return
        data = self._rest + data
        if not self._is_begun:
            data = self._after_headers(data)
        try:
            block = read_block(data, self.next)
        except Lost as error:
            group.fail(error)
            return
        if block is None:
            self._rest = data
            return
        rest = data[block.end :]
        self._rest = b"" if rest == LINE_END else rest
        if block.chunks:
            made = stamps(data, block.end) if self._group.is_timing else ()
            self._took(data[: block.end], block.last + 1, made)

    def _took(self, data: bytes, after: int, made: Sequence[int]) -> None:
        """Note the chunks before `after`, which were made at those moments."""
        group, before = self._group, self.next
        group.chunks += after - before
        self._recent, self.next = data, after
        if group.is_timing:
            now = time.monotonic_ns()
            for stamp in made:
                group.delays.append(now - stamp)
            self.gap_ns = max(self.gap_ns, now - self.last_ns)
            self.last_ns = now
            if self._asked_ns and made[-1] >= self._asked_ns:
                self._asked_ns, self.caught_up_ns = 0, now
                group.arrived()
                return
        group.took(before, after)

    def _after_headers(self, data: bytes) -> bytes:
        """Take the headers off, once they are there."""
        head, found, rest = data.partition(b"\r\n\r\n")
        if not found:
            return data
        wait = RETRY_AFTER.search(head)
        if head.startswith(b"HTTP/1.1 503 ") and wait is not None and self._group.retry is not None:
            self.hang_up()
            self.again(self._request)
            self._group.turned_away += 1
            self._group.retry(self, float(wait[1]))
            return b""
        if not head.startswith(b"HTTP/1.1 200 "):
            self._group.fail(Refused(data[:500].decode(errors="replace")))
        self._is_begun = True
        self._group.began()
        return rest

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._transport = None
            self._group.fail(Refused(f"a response ended after chunk {self.next - 1}: {exc}"))

    def hang_up(self) -> None:
        """Be gone, at once."""
        if self._transport is not None:
            transport, self._transport = self._transport, None
            transport.abort()

    @property
    def cursor(self) -> int:
        """The `seq_id` of the last chunk that it has."""
        return newest_cursor(self._recent)

    @property
    def is_slow(self) -> bool:
        return self._per_second > 0

    def _spend(self, nbytes: int) -> None:
        self._quota -= nbytes
        if self._quota <= 0 and self._transport is not None:
            self._transport.pause_reading()

    def refill(self) -> None:
        """Read on for a second, at its own pace."""
        if self._quota <= 0 and self._transport is not None:
            self._transport.resume_reading()
        self._quota = self._per_second

    def hurry(self) -> None:
        """Be slow no longer."""
        self._per_second = 0
        if self._quota <= 0 and self._transport is not None:
            self._transport.resume_reading()
