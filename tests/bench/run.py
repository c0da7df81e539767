"""Measures what runstream costs, beside those that users would pick instead: `make bench`, `make bench-quick`.

Prints a Markdown table, and ends what it started. A missed target is said, not failed: on a machine that others use
too, a number is no verdict. What is lost, doubled or out of order, however, is a failure, and so are a peer that is
missing and a bench that takes too long.
"""

import argparse
import asyncio
import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import machine, report
from tests.bench.bench import Bench, Findings, Scenario
from tests.bench.environments import ROOT, NotInstalled, python_of
from tests.bench.exchange import Refused
from tests.bench.figures import NothingMeasured
from tests.bench.load import LoadFailed
from tests.bench.peers.contender import Entry
from tests.bench.peers.registry import PEERS
from tests.bench.peers.serving import without_settings
from tests.bench.progress import Bar
from tests.bench.scenarios import NAMES, quick, whole

RESULTS = Path(__file__).parent / "results"
RUNS = 5
START_SECONDS = 120.0
"""What the start of runstream and of the load may take."""
PLOT_SECONDS = 120.0


class Absent(Exception):
    """A peer could not be measured."""


@dataclass
class Plan:
    """What is measured, and how."""

    scenarios: Sequence[Scenario]
    peers: tuple[Entry, ...]
    runs: int
    is_small: bool
    """The scenarios share a runstream, and their targets do not hold."""

    async def carry_out(self) -> dict[str, Any]:
        """Measure; SIGTERM, like Ctrl-C, ends what was started before it ends the bench."""
        measuring = asyncio.current_task()
        assert measuring is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)
        found: dict[str, Any] = {"format": report.FORMAT, "machine": machine.facts(), "runs": self.runs}
        found["peers"] = [entry.title for entry in self.peers]
        found["scenarios"] = {}
        async with contextlib.AsyncExitStack() as stack:
            bar = stack.enter_context(Bar.of(len(self.scenarios) * self.runs))
            shared = await stack.enter_async_context(self._bench(bar)) if self.is_small else None
            for scenario in self.scenarios:
                findings = Findings(is_judged=not self.is_small)
                await self._go_through(scenario, findings, bar, None if scenario.is_fresh else shared)
                found["scenarios"][scenario.name] = report.raw(findings, scenario.title)
        return found

    async def _go_through(self, scenario: Scenario, findings: Findings, bar: Bar, shared: Bench | None) -> None:
        """Measure one scenario as often as told, each time with a new runstream if it has to be one."""
        deployments, each = (self.runs, 1) if scenario.is_fresh else (1, self.runs)
        for deployment in range(deployments):
            bar.begin(scenario.name)
            async with contextlib.AsyncExitStack() as stack:
                bench = shared if shared is not None else await stack.enter_async_context(self._bench(bar))
                measured = await stack.enter_async_context(bench.measuring(scenario, findings))
                for run in range(each):
                    bar.begin(f"{scenario.name} {deployment + run + 1} of {self.runs}")
                    async with asyncio.timeout(scenario.seconds):
                        await scenario.measure(measured)
                    bar.end()

    @contextlib.asynccontextmanager
    async def _bench(self, bar: Bar) -> AsyncIterator[Bench]:
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(START_SECONDS):
                bench = await stack.enter_async_context(Bench.running(self.peers, bar.say))
            yield bench


def install(entries: Sequence[Entry]) -> None:
    """Install the peers that are not there. Raises `Absent`, which names all that could not be."""
    missing = []
    for entry in entries:
        sys.stderr.write(f"installing {entry.title}, if it is not there yet\n")
        try:
            entry.install()
        except NotInstalled as error:
            missing.append(f"{entry.title}: {error}")
    if missing:
        raise Absent("\n".join(missing))


def draw(numbers: Path) -> None:
    """Draw the plots, in an environment that has what that takes."""
    script = Path(__file__).parent / "plots.py"
    subprocess.run([python_of("plots"), script, numbers], check=True, timeout=PLOT_SECONDS)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a run of each, small, without peers, in under a minute")
    parser.add_argument("--only", action="append", choices=NAMES, help="measure this one; may be repeated")
    parser.add_argument("--runs", type=_runs, help=f"how often each is measured [{RUNS}; quick: 1]")
    parser.add_argument("--without-peers", action="store_true", help="measure runstream and the floor alone")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIRECTORY",
        help="where to write [tests/bench/results, if it is the whole]",
    )
    return parser.parse_args()


def _runs(said: str) -> int:
    if not (said.isdecimal() and int(said) > 0):
        raise argparse.ArgumentTypeError(f"{said} is no number of runs: give one, or more")
    return int(said)


def made_ready(results: Path) -> None:
    """Make the directory, try to write there, and have what plots take: after all of it is late to hear that it fails.

    Raises `OSError`, `NotInstalled`.
    """
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=results):
        pass
    python_of("plots")


def main() -> int:
    given = arguments()
    without_settings()
    chosen = [each for each in (quick() if given.quick else whole()) if not given.only or each.name in given.only]
    peers = () if given.quick or given.without_peers else PEERS
    runs = given.runs or (1 if given.quick else RUNS)
    is_whole = runs >= RUNS and not (given.quick or given.without_peers or given.only)
    results = given.results or (RESULTS if is_whole else None)
    try:
        if results is not None:
            made_ready(results)
        install(peers if any(scenario.name == "fanout" for scenario in chosen) else ())
        plan = Plan(chosen, peers, runs, is_small=given.quick)
        found = asyncio.run(plan.carry_out())
    except (Absent, LoadFailed, NotInstalled, NothingMeasured, Refused, TimeoutError, AssertionError) as error:
        sys.stderr.write(f"\nThe bench failed: {type(error).__name__} {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"\nThe bench cannot be carried out: {error}\n")
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.stderr.write("\nThe bench was interrupted.\n")
        return 130
    print(report.markdown(found))
    numbers = None if results is None else report.write(results, found)
    if is_whole and not given.results:
        readme = ROOT / "README.md"
        text = report.with_figures(readme.read_text(encoding="utf-8"), f"\n{report.summary(found)}\n")
        readme.write_text(text, encoding="utf-8")
    if numbers is not None:
        draw(numbers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
