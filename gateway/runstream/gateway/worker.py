"""A worker as its parent keeps it: a socket, and a process that serves there, one after the other.

It is started by the same command line as its parent, not by a fork of it: a loop that runs cannot be had twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import structlog
from aiohttp import ClientError, ClientSession, UnixConnector

from runstream.broker.http import ASKING_SECONDS
from runstream.gateway.commands.exits import Exit
from runstream.gateway.place import Place
from runstream.gateway.process import CannotStart, WronglyAsked, bind

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["ANSWER_SECONDS", "Worker"]

log = structlog.get_logger(__name__)

FIRST_PAUSE_SECONDS: Final = 0.5
LAST_PAUSE_SECONDS: Final = 15.0
"""Waits before a worker is started again, the first time aside: each start takes a second of a core from the others."""
STABLE_SECONDS: Final = 10.0
"""A worker that was there for so long did start: its end begins the waits anew."""
LEAVING_SECONDS: Final = 12.0
"""How long a worker may take to end when it has drained, or is not to: a second or two, and ten more without NATS."""
ANSWER_SECONDS: Final = ASKING_SECONDS + 1.0
"""How long the answer of a worker is waited for: it may wait for NATS itself, and has a second beyond that."""


class _Outcome(NamedTuple):
    """How a process has ended: its exit status (negative: a signal's), whether it ever served, what it said last."""

    status: int
    was_ready: bool
    said: str


class Worker:
    """One of the workers. `command` starts a gateway, and is given its place beside.

    `listener` is its own from now on, and `directory` for what it is asked by. It has `drain_seconds` to drain.
    """

    def __init__(
        self, number: int, command: Sequence[str], listener: socket.socket, directory: Path, drain_seconds: float
    ) -> None:
        self.number = number
        self.restarts = 0
        self.ready = asyncio.Event()
        """Whether it has reached NATS."""
        self._command = command
        self._listener = listener
        self._directory = directory
        self._drain_seconds = drain_seconds
        self._process: Process | None = None
        self._is_told = asyncio.Event()

    @property
    def is_alive(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.returncode is None

    async def live(self) -> None:
        """Have a process, and another after each that ends unasked, until told to drain; cancelled, end it at once.

        Raises `CannotStart` if the first one could not.
        """
        pause, could_start = 0.0, False
        while True:
            began = time.monotonic()
            end = await self._run()
            if self._is_told.is_set():
                return
            could_start |= end.was_ready
            if end.status > 0 and not could_start:
                kind = WronglyAsked if end.status == Exit.USAGE else CannotStart
                raise kind(end.said or f"Worker {self.number} ended with {end.status} before it was ready.")
            if time.monotonic() - began > STABLE_SECONDS:
                pause = 0.0
            if pause or not end.was_ready:
                self._open_anew()
            said = {"said": end.said} if end.said else {}
            log.warning("worker_ended", worker=self.number, status=end.status, restart_in=pause, **said)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._is_told.wait()
            # Looked at once more: it may be told in the moment in which the pause is over, and has no socket then.
            if self._is_told.is_set():
                return
            pause = min(max(2 * pause, FIRST_PAUSE_SECONDS), LAST_PAUSE_SECONDS)
            self.restarts += 1

    def drain(self) -> None:
        """Have it end by itself, within the time that it has for that, and start no more."""
        self._is_told.set()
        self._tell_to_drain()

    def kill(self) -> None:
        """End its process, with nothing given back."""
        self._send(signal.SIGKILL)

    def close(self) -> None:
        """Have nobody wait at its socket any more, once its process listens there no more."""
        self._listener.close()

    async def metrics(self) -> str | None:
        """Ask for what it shows of itself, None if it does not answer."""
        answer = await self._ask("/metrics")
        return None if answer is None else answer[1]

    async def unready(self) -> str | None:
        """Say in words why it is not ready, None when it is."""
        answer = await self._ask("/readyz")
        if answer is None:
            return f"Worker {self.number} does not answer."
        status, text = answer
        return None if status == HTTPStatus.OK else f"Worker {self.number}: {msgspec.json.decode(text)['detail']}"

    async def _run(self) -> _Outcome:
        """Start a process, and wait until it has ended; cancelled, until it has been ended."""
        said = ""
        try:
            process = self._process = await self._started()
        except OSError as error:
            self._socket.unlink(missing_ok=True)
            said = f"A worker cannot be started with its socket {self._socket}, below TMPDIR: {error}."
            return _Outcome(os.EX_OSERR, was_ready=False, said=said)
        was_ready = False
        try:
            if self._is_told.is_set():
                self._tell_to_drain()
            assert process.stdout is not None  # noqa: S101  # it is a pipe
            async for line in process.stdout:
                said = line.decode(errors="replace").strip()
                if said.startswith("ready "):
                    was_ready, said = True, ""
                    self.ready.set()
            status = await process.wait()
        finally:
            self.ready.clear()
            await self._end(process, how=signal.SIGINT if was_ready else signal.SIGKILL)
            self._process = None
            self._socket.unlink(missing_ok=True)
        return _Outcome(status, was_ready, said.removeprefix("runstream: "))

    async def _started(self) -> Process:
        # Anew for each process: nobody waits at that of one that has ended.
        self._socket.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as operators:
            operators.bind(str(self._socket))
            operators.listen()
            place = Place(self.number, self._listener.fileno(), operators.fileno())
            # In a session of its own: a terminal's Ctrl-C is for the parent, which then ends its workers.
            return await asyncio.create_subprocess_exec(
                *self._command,
                "--worker",
                str(place),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=(place.listener, place.operators),
                start_new_session=True,
            )

    @property
    def _socket(self) -> Path:
        """Where it answers its parent."""
        return self._directory / str(self.number)

    def _open_anew(self) -> None:
        """Send away who waits at its socket, for longer than anybody knows; that of the next opens when it serves."""
        host, port = self._listener.getsockname()[:2]
        # In this order: if no other worker is there, somebody else would take the port in between.
        try:
            anew = bind(host, port, "port", is_shared=True, listens=False)
        except CannotStart as error:
            # Out of descriptors, for one. Who waits goes on waiting, and is served by the next that starts.
            log.warning("socket_kept", worker=self.number, error=str(error))
            return
        self._listener.close()
        self._listener = anew

    def _tell_to_drain(self) -> None:
        self._send(signal.SIGTERM)
        asyncio.get_running_loop().call_later(self._drain_seconds + LEAVING_SECONDS, self._kill_late, self._process)

    async def _end(self, process: Process, how: signal.Signals) -> None:
        """End a process that has not ended. One that was never ready has nothing to give back."""
        if process.returncode is None:
            self._send(how)
            killing = asyncio.get_running_loop().call_later(LEAVING_SECONDS, self._kill_late, process)
            await process.wait()
            killing.cancel()

    def _kill_late(self, process: Process | None) -> None:
        if self.is_alive and process is self._process:
            log.warning("worker_killed", worker=self.number, meaning="it did not end in time")
            self.kill()

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _ask(self, path: str) -> tuple[int, str] | None:
        """Ask what operators ask of a gateway; None if it does not answer in time."""
        try:
            async with (
                asyncio.timeout(ANSWER_SECONDS),
                ClientSession(connector=UnixConnector(str(self._socket))) as session,
                session.get(f"http://worker{path}") as answer,
            ):
                return answer.status, await answer.text()
        except (OSError, ClientError):
            return None
