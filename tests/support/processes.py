"""Real processes for tests of signals, kills and command lines."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from tests.support.waiting import wait_until

# The longest line a test may read from a process: a chunk as large as NATS takes, with room.
LINE_LIMIT = 4 * 1024 * 1024
# What a process gets to end by itself, once its test is over, before it is killed.
GRACE_SECONDS = 5.0
# What the pipes of a process get to end once it and its family are dead.
EOF_SECONDS = 1.0


NOTHING = Path(os.devnull)


class RunningProcess:
    """A child process whose output is collected line by line, in `lines` (stdout) and `errors` (stderr)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._readers = [
            asyncio.create_task(_collect(process.stdout, self.lines), name=f"stdout of {process.pid}"),
            asyncio.create_task(_collect(process.stderr, self.errors), name=f"stderr of {process.pid}"),
        ]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait_for_line(self, pattern: str, timeout: float = 10.0) -> str:
        """The first line of stdout, past or future, in which the regular expression is found."""
        expression = re.compile(pattern)

        def found() -> str | None:
            return next((line for line in self.lines if expression.search(line)), None)

        def settled() -> bool:
            ended = self.returncode is not None and all(reader.done() for reader in self._readers)
            return ended or found() is not None

        await wait_until(settled, timeout, f"no line like {pattern!r}; {self.report()}")
        line = found()
        assert line is not None, f"the process ended without a line like {pattern!r}; {self.report()}"
        return line

    async def wait(self, timeout: float = 10.0) -> int:
        """Its exit code (negative: the signal that ended it), with all its output read."""
        try:
            async with asyncio.timeout(timeout):
                code = await self._process.wait()
                await asyncio.gather(*self._readers)
        except TimeoutError:
            complaint = f"still running after {timeout:g} s; {self.report()}"
            raise AssertionError(complaint) from None
        return code

    async def write(self, data: bytes) -> None:
        """Give it more of its input, which it has if it was started with some."""
        assert self._process.stdin is not None, "it was started without input"
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    def end_input(self) -> None:
        assert self._process.stdin is not None, "it was started without input"
        self._process.stdin.close()

    def send_signal(self, number: signal.Signals) -> None:
        """To this process alone."""
        self._process.send_signal(number)

    def interrupt_group(self) -> None:
        """What a terminal does on Ctrl-C: SIGINT to the whole process group."""
        os.killpg(self.pid, signal.SIGINT)

    def report(self) -> str:
        """The last of what it said, for a failure's message."""
        return f"stdout: {self.lines[-20:]}, stderr: {self.errors[-20:]}"

    async def close(self) -> None:
        """End the process and everything it started, whatever session those are in."""
        family = descendants(self.pid)
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE_SECONDS):
                    await self._process.wait()
        for pid in family if self.returncode is not None else [self.pid, *family]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._process.wait()
        # The pipes end with the last of the family, a moment later: until then they are open, and the loop may close.
        await asyncio.wait(self._readers, timeout=EOF_SECONDS)
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)


@contextlib.asynccontextmanager
async def running(
    *argv: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    has_input: bool = False,
    stdin: Path = NOTHING,
) -> AsyncIterator[RunningProcess]:
    """A child process in a group of its own, `env` on top of this environment; gone when the block ends."""
    with stdin.open("rb") as given:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE if has_input else given,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            cwd=cwd,
            limit=LINE_LIMIT,
            process_group=0,
        )
    child = RunningProcess(process)
    try:
        yield child
    finally:
        await child.close()


def python(*args: str | Path) -> list[str]:
    """The argv of this interpreter: `python("-c", "print(1)")`."""
    return [sys.executable, *map(str, args)]


def runstream(*args: str | Path) -> list[str]:
    """The argv of the command, as a module: there is no script where the source is used as it lies."""
    return python("-m", "runstream.gateway", *args)


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie, where /proc tells, does not)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc").exists()


def is_stopped(pid: int) -> bool:
    """Whether every thread of the process has been stopped by a signal (where /proc tells; elsewhere, yes)."""
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


def descendants(pid: int) -> list[int]:
    """Children, grandchildren and so on, of any session (Linux; elsewhere none)."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    family: list[int] = []
    unseen = [pid]
    while unseen:
        children = parents.get(unseen.pop(), [])
        family += children
        unseen += children
    return family


async def _collect(stream: asyncio.StreamReader | None, into: list[str]) -> None:
    assert stream is not None
    async for line in stream:
        into.append(line.decode(errors="replace").rstrip("\n"))  # noqa: PERF401 (others read it meanwhile)
