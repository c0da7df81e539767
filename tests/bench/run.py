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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench import machine, report
from tests.bench.bench import Bench, Findings, Scenario
from tests.bench.environments import NotInstalled, python_of
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
"""What the start of all servers may take, of a scenario's peers too."""
PLOT_SECONDS = 120.0


class Absent(Exception):
    """A peer could not be measured."""


async def measure(scenario: Scenario, findings: Findings, others: tuple[Entry, ...], runs: int, bar: Bar) -> None:
    """Go through all runs of one scenario."""
    deployments, each = (runs, 1) if scenario.is_fresh else (1, runs)
    for deployment in range(deployments):
        bar.begin(scenario.name)
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(START_SECONDS):
                bench = await stack.enter_async_context(Bench.running(findings, others, bar.say))
            async with asyncio.timeout(scenario.seconds):
                await scenario.prepare(bench)
            for run in range(each):
                bar.begin(f"{scenario.name} {deployment + run + 1} of {runs}")
                async with asyncio.timeout(scenario.seconds):
                    await scenario.measure(bench)
                bar.end()


async def measure_all(
    scenarios: Sequence[Scenario], others: tuple[Entry, ...], runs: int, *, is_judged: bool
) -> dict[str, Any]:
    """Measure; SIGTERM, like Ctrl-C, ends what was started before it ends the bench."""
    measuring = asyncio.current_task()
    assert measuring is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)
    found: dict[str, Any] = {"format": report.FORMAT, "machine": machine.facts(), "runs": runs, "scenarios": {}}
    found["peers"] = [entry.title for entry in others]
    with Bar.of(len(scenarios) * runs) as bar:
        for scenario in scenarios:
            findings = Findings(is_judged=is_judged)
            await measure(scenario, findings, others, runs, bar)
            found["scenarios"][scenario.name] = report.raw(findings, scenario.title)
    return found


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
    parser.add_argument("--runs", type=int, default=None, help=f"how often each is measured [{RUNS}; quick: 1]")
    parser.add_argument("--without-peers", action="store_true", help="measure runstream and the floor alone")
    parser.add_argument(
        "--results", type=Path, metavar="DIRECTORY", help="where to write [tests/bench/results, if it is the whole]"
    )
    return parser.parse_args()


def main() -> int:
    given = arguments()
    without_settings()
    chosen = [each for each in (quick() if given.quick else whole()) if not given.only or each.name in given.only]
    peers = () if given.quick or given.without_peers else PEERS
    is_whole = not (given.quick or given.without_peers or given.only)
    try:
        install(peers if any(scenario.name == "fanout" for scenario in chosen) else ())
        runs = given.runs or (1 if given.quick else RUNS)
        found = asyncio.run(measure_all(chosen, peers, runs, is_judged=not given.quick))
    except (Absent, LoadFailed, NotInstalled, NothingMeasured, Refused, TimeoutError, AssertionError) as error:
        sys.stderr.write(f"\nThe bench failed: {type(error).__name__} {error}\n")
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.stderr.write("\nThe bench was interrupted.\n")
        return 130
    print(report.markdown(found))
    if results := given.results or (RESULTS if is_whole else None):
        draw(report.write(results, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
