"""The commands of clients, run as people run them: as processes of their own."""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import NOTHING, RunningProcess, running, runstream
from tests.support.services import SOURCE

END_SECONDS = 30.0
CLEAN = {"RUNSTREAM_KEY": "", "RUNSTREAM_KEY_FILE": "", "NO_COLOR": "1", "COLUMNS": "200"}


@dataclass(frozen=True)
class Done:
    """What became of a command."""

    code: int
    lines: list[str]
    errors: list[str]

    @property
    def json(self) -> list[Any]:
        """Each line of stdout, as JSON."""
        return [json.loads(line) for line in self.lines]

    @property
    def complaint(self) -> str:
        """The one line of stderr that says what is wrong."""
        (line,) = (line for line in self.errors if line.startswith("runstream: "))
        return line


@contextlib.asynccontextmanager
async def command(
    *args: str, env: Mapping[str, str] | None = None, has_input: bool = False, stdin: Path = NOTHING
) -> AsyncIterator[RunningProcess]:
    """A command, started."""
    environment = {**SOURCE, **CLEAN, **(env or {})}
    async with running(*runstream(*args), env=environment, has_input=has_input, stdin=stdin) as process:
        yield process


async def finished(process: RunningProcess) -> Done:
    """What became of it, after a check that nobody is shown a stack trace."""
    code = await process.wait(END_SECONDS)
    assert not any("Traceback" in line for line in process.errors), process.report()
    return Done(code, process.lines, process.errors)


async def done(*args: str, env: Mapping[str, str] | None = None, said: bytes | None = None) -> Done:
    """A command, from its beginning to its end; `said` is its input."""
    async with command(*args, env=env, has_input=said is not None) as process:
        if said is not None:
            await process.write(said)
            process.end_input()
        return await finished(process)
