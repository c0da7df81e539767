"""What runs in a chaos world: processes that can be killed, stopped and paused, and are found again where they were."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from runstream.broker.embedded import DIE_WITH_PARENT, EmbeddedServer
from tests.support.http import Cut, fetch
from tests.support.nats import answers
from tests.support.processes import GRACE_SECONDS, is_stopped
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
READY_SECONDS = 30.0
"""A service imports for most of a second, on a machine that is busy with all the others."""
ASK_SECONDS = 2.0
STOP_SECONDS = 40.0
"""Who has not ended so long after a signal hangs: twice the longest that a service takes to give its work away."""


class Victim(Protocol):
    """Whatever a fault may be done to."""

    name: str

    @property
    def pid(self) -> int | None:
        """The process that runs now, if one does."""

    async def start(self) -> None:
        """Run, at the same place; returns when there is a process, which need not serve yet."""

    async def stop(self, how: signal.Signals) -> None:
        """Send the signal, and wait until the process has ended. Raises `AssertionError` if it hangs."""

    async def is_ready(self) -> bool:
        """Whether it serves."""


class Service:
    """A process of its own, whose output goes to `<directory>/<name>.log`; it dies with who started it.

    One with a `url` is ready when its `/readyz` says so, one without when it has said `ready`.
    """

    def __init__(
        self, name: str, argv: Sequence[str], directory: Path, *, env: Mapping[str, str] | None = None, url: str = ""
    ) -> None:
        self.name = name
        self.url = url
        self.log_file = directory / f"{name}.log"
        self._argv = argv
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        self._process: asyncio.subprocess.Process | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process else None

    @property
    def exit_code(self) -> int | None:
        """How the last process ended, if one has."""
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        assert self.pid is None, f"{self.name} runs already"
        argv = [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), *self._argv]
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                cwd=ROOT,
                start_new_session=True,
            )

    async def stop(self, how: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        assert await self.ended(STOP_SECONDS), f"{self.name} runs on after {how.name}: see {self.log_file}"

    async def ended(self, seconds: float) -> bool:
        """Wait so long for the process to end; whether it has."""
        assert self._process is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()
        return self._process.returncode is not None

    def obituary(self) -> str:
        """Say how it has ended."""
        return f"{self.name} has ended with exit code {self.exit_code}: see {self.log_file}"

    async def is_ready(self) -> bool:
        if self.pid is None:
            return False
        if not self.url:
            return self._has_said_ready()
        with contextlib.suppress(OSError, Cut, TimeoutError):
            async with asyncio.timeout(ASK_SECONDS):
                return (await fetch(self.url, "GET", "/readyz")).status == 200
        return False

    def _has_said_ready(self) -> bool:
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            return any(line.startswith(b"ready") for line in log)

    async def close(self) -> None:
        """End it, whatever state it is in."""
        if self.pid is None:
            return
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)
        self._process.send_signal(signal.SIGTERM)
        if not await self.ended(GRACE_SECONDS):
            self._process.kill()
            await self._process.wait()


class Node:
    """One nats-server, alone or of a cluster."""

    def __init__(self, name: str, server: EmbeddedServer) -> None:
        self.name = name
        self.embedded = server

    @property
    def pid(self) -> int | None:
        return self.embedded.pid

    @property
    def is_awake(self) -> bool:
        """Whether it runs, and has not been stopped where it stands."""
        try:
            return self.pid is not None and not is_stopped(self.pid)
        except OSError:  # a thread, or all of it, has ended meanwhile
            return False

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self.embedded.host, self.embedded.port

    async def start(self) -> None:
        await self.embedded.start()

    async def stop(self, how: signal.Signals) -> None:
        await self.embedded.stop(how)

    async def is_ready(self) -> bool:
        return self.pid is not None and await answers(self.embedded.url)

    async def close(self) -> None:
        """End it, whatever state it is in."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGCONT)
        await self.embedded.stop(signal.SIGKILL)


async def paused(victim: Victim) -> int:
    """Stop the process where it stands; returns its id when all its threads have."""
    pid = victim.pid
    assert pid is not None, f"{victim.name} does not run"
    os.kill(pid, signal.SIGSTOP)
    await wait_until(lambda: is_stopped(pid), message=f"{victim.name} does not stop")
    return pid


async def ready(victim: Victim, timeout: float = READY_SECONDS) -> None:
    """Wait until it serves. Raises `AssertionError` if it does not, at once if it has ended."""

    async def serves() -> bool:
        assert not isinstance(victim, Service) or victim.exit_code is None, victim.obituary()
        return await victim.is_ready()

    await wait_until(serves, timeout, f"{victim.name} is not ready")
