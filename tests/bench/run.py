"""Measures what runstream costs: `make bench`, `make bench ARGS=--quick`.

Starts `runstream up`, loads it from two processes of their own, prints a Markdown table, and ends what it started.
A missed target is said, not failed: on a machine that others use too, a number is no verdict. What is lost, doubled
or out of order, however, is a failure, and so is a bench that takes too long.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from tests.bench import machine, report
from tests.bench.exchange import Refused
from tests.bench.figures import Figure
from tests.bench.load import LoadFailed, LoadProcess
from tests.bench.scenarios import FACTS, QUICK, SCENARIOS, Bench, Sizes, warm_up
from tests.support.processes import python, running

RESULTS = Path(__file__).parent / "results"
LONGEST_SECONDS = 115.0
START_SECONDS = 60.0


class Progress:
    """One line on stderr that says what is going on; lines where that is no terminal."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def say(self, what: str) -> None:
        elapsed = f"[{time.monotonic() - self._begun:5.1f} s] {what}"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{elapsed}")
        else:
            sys.stderr.write(f"{elapsed}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[tuple[int, dict[str, str]]]:
    """A `runstream up` on free ports with a store of its own: its process id and where it listens."""
    with tempfile.TemporaryDirectory(prefix="runstream-bench-") as directory:
        ports = ("--port", "0", "--broker-port", "0", "--nats-port", "0")
        command = python("-m", "runstream.gateway", "up", *ports, "--data-dir", directory, "--log-level", "warning")
        async with running(*command) as process:
            await process.wait_for_line("^ready ", timeout=START_SECONDS)
            endpoints = json.loads((Path(directory) / "endpoints.json").read_text(encoding="utf-8"))
            yield process.pid, endpoints


async def measure(sizes: Sizes, progress: Progress) -> tuple[list[Figure], dict[str, object]]:
    """Go through all scenarios; returns their figures and what they depend on."""
    facts = {**machine.facts(), **FACTS}
    figures: list[Figure] = []
    async with contextlib.AsyncExitStack() as stack:
        progress.say("starting")
        pid, endpoints = await stack.enter_async_context(server())
        reader = await stack.enter_async_context(LoadProcess.running("reader"))
        writer = await stack.enter_async_context(LoadProcess.running("writer"))
        facts["nats_server"] = await writer.call("connect", nats_url=endpoints["nats"])
        await reader.call("connect", base=endpoints["gateway"])
        bench = Bench(pid, reader, writer, sizes, progress.say)
        await warm_up(bench)
        for scenario in SCENARIOS:
            figures += [figure async for figure in scenario(bench)]
        progress.say("stopping")
    progress.clear()
    return figures, facts


async def bounded(sizes: Sizes) -> tuple[list[Figure], dict[str, object]]:
    """Measure, in bounded time; SIGTERM, like Ctrl-C, ends what was started before it ends the bench."""
    measuring = asyncio.current_task()
    assert measuring is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)
    async with asyncio.timeout(LONGEST_SECONDS):
        return await measure(sizes, Progress())


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few samples in half a minute, and no files unless asked")
    parser.add_argument("--results", type=Path, metavar="DIRECTORY", help="where to write latest.json and latest.md")
    given = parser.parse_args()
    results = given.results or (None if given.quick else RESULTS)
    # A setting of whoever measures would be measured, too.
    for name in [name for name in os.environ if name.startswith("RUNSTREAM_")]:
        del os.environ[name]
    try:
        figures, facts = asyncio.run(bounded(QUICK if given.quick else Sizes()))
    except (LoadFailed, Refused, TimeoutError, AssertionError) as error:
        sys.stderr.write(f"\nThe bench failed: {type(error).__name__} {error}\n")
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.stderr.write("\nThe bench was interrupted.\n")
        return 130
    text = report.markdown(figures, facts)
    print(text)
    if results is not None:
        report.write(results, figures, facts, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
