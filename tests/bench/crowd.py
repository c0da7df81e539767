"""What the crowd's process does: very many readers at the cost of a few, so that two cores carry them and the server.

A response that is not a 200, that ends, or that loses a chunk fails the run.
"""

import asyncio
import gc
import resource
import socket
import time
from collections import defaultdict
from functools import partial
from typing import Any, Self
from urllib.parse import urlsplit

from tests.bench.exchange import post
from tests.bench.figures import NS_PER_MS, percentile
from tests.bench.member import Group, Member

AT_ONE_TIME = 100
"""Connections that are being opened at one time: a server's backlog is 128."""
SLOW_RECEIVE_BYTES = 4096
"""The kernel's room for a reader that is to be slow: what it takes for the reader is not slow at all."""
SLOW_SEGMENT_BYTES = 1400
"""With the loopback's own segments of 64 KiB the sender's kernel would hold megabytes for each reader."""
QUANTILES = range(101)


class Crowd:
    """Readers of one server, in groups by name. Each call answers when what it asks for is so, within `seconds`."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = defaultdict(partial(Group, self._retry))
        self._comers: set[asyncio.Task[None]] = set()
        self._host, self._port = "", 0
        self._refilling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        gc.disable()  # Its pauses would be taken for the server's.
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def connect(self, base: str) -> None:
        """Send all requests to `http://host:port`."""
        parts = urlsplit(base)
        self._host, self._port = parts.hostname or "", parts.port or 80

    async def join(
        self, requests: list[str], seconds: float, *, group: str = "", per_second: int = 0, headers: bool = True
    ) -> None:
        """Open a response to each of the requests; returns when all have their headers.

        Without `headers`, when all have asked: not everybody answers before there is a chunk. `per_second` bytes are
        read of each, 0: as much as comes.
        """
        joined = self._groups[group]
        newcomers = [Member(joined, per_second=per_second) for _ in requests]
        joined.members += newcomers
        for member, request in zip(newcomers, requests, strict=True):
            member.again(request.encode())
        begun = asyncio.create_task(joined.beginnings(len(newcomers) if headers else 0, seconds), name="begun")
        try:
            for at in range(0, len(newcomers), AT_ONE_TIME):
                await asyncio.gather(*map(self._open, newcomers[at : at + AT_ONE_TIME]))
            await begun
        finally:
            begun.cancel()
        if per_second and self._refilling is None:
            self._refilling = asyncio.create_task(self._refill(), name="refill")

    async def _open(self, member: Member) -> None:
        connection = socket.socket()
        connection.setblocking(False)
        if member.is_slow:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_RECEIVE_BYTES)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SLOW_SEGMENT_BYTES)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, (self._host, self._port))
        await loop.create_connection(lambda: member, sock=connection)

    def _retry(self, member: Member, seconds: float) -> None:
        """Have who was turned away come back when it was told to, as a client does."""

        async def come() -> None:
            await asyncio.sleep(seconds)
            await self._open(member)

        comer = asyncio.create_task(come(), name="comer")
        self._comers.add(comer)
        comer.add_done_callback(self._comers.discard)

    async def _refill(self) -> None:
        while True:
            await asyncio.sleep(1)  # a second's worth of bytes
            for group in self._groups.values():
                for member in group.members:
                    if member.is_slow:
                        member.refill()

    async def restart(self, *, group: str = "", timing: bool = True) -> None:
        """Count anew; with `timing`, note of each chunk how long it was on its way."""
        self._groups[group].restart(timing=timing)

    async def reach(self, number: int, seconds: float, *, group: str = "") -> int:
        """Wait until all have the chunks before `number`; gives the moment at which the last one had."""
        await self._groups[group].reach(number, seconds)
        return time.monotonic_ns()

    async def hurry(self, *, group: str = "") -> None:
        """Have the slow read as fast as they can."""
        for member in self._groups[group].members:
            member.hurry()

    async def come_back(self, path: str, within: float, seconds: float, *, group: str = "") -> dict[str, float]:
        """Cut all at once, and have them come back to a run, spread over `within`, each with its cursor.

        Gives the seconds from the cut to the moment at which the last one, and the median one, was live again.
        """
        returning = self._groups[group]
        for member in returning.members:
            member.hang_up()
        cut_ns = time.monotonic_ns()
        live = asyncio.create_task(returning.arrivals(len(returning.members), seconds), name="live again")
        comers = []
        for at, member in enumerate(returning.members):
            due = within * at / len(returning.members)
            comers.append(asyncio.create_task(self._return(member, path, cut_ns / 1e9 + due), name=f"comer {at}"))
        try:
            await asyncio.gather(*comers)
            await live
        finally:
            live.cancel()
        took = [(member.caught_up_ns - cut_ns) / 1e9 for member in returning.members]
        return {"last": max(took), "median": percentile(took, 50)}

    async def _return(self, member: Member, path: str, due: float) -> None:
        await asyncio.sleep(due - time.monotonic())
        member.come_back(post(path, {"starting_after": member.cursor}))
        await self._open(member)

    async def told(self, *, group: str = "") -> dict[str, Any]:
        """What was counted since `restart`: chunks, bytes, percentiles of the delays and the longest gap, in ms."""
        asked = self._groups[group]
        delays = sorted(asked.delays)
        return {
            "chunks": asked.chunks,
            "bytes": asked.bytes,
            "turned_away": asked.turned_away,
            "longest_gap": max((member.gap_ns for member in asked.members), default=0) / NS_PER_MS,
            "percentiles": [percentile(delays, at) / NS_PER_MS for at in QUANTILES] if delays else [],
        }

    async def leave(self) -> None:
        """Hang up, all of them."""
        if self._refilling is not None:
            self._refilling.cancel()
            self._refilling = None
        for comer in self._comers:
            comer.cancel()
        for group in self._groups.values():
            for member in group.members:
                member.hang_up()
        self._groups.clear()
