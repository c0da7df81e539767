"""The same tests again and again: `python -m tests.again --times 50 tests/lifecycle`.

Each pass is a pytest of its own, in an order of its own, some of them beside each other, as tests that wait leave a
machine to others. The first that fails ends it: what it printed is kept and told, with the seed that repeats its order.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

LIFE = (
    "tests/lifecycle",
    "tests/clients",
    "tests/core",
    "tests/contract/test_approvals.py",
    "tests/contract/test_cancel.py",
    "tests/contract/test_endings.py",
    "tests/contract/test_started.py",
    "tests/contract/test_two_gateways.py",
    "tests/contract/test_whole_answers.py",
)
"""Where the life of a run is tested: what races, lapses, is killed, cancelled and repaired."""
OTHERS = (
    "tests/clients/test_letta.py",
    "tests/clients/test_lists.py",
    "tests/clients/test_methods.py",
    "tests/clients/test_model_settings.py",
    "tests/clients/test_surface.py",
    "tests/clients/test_typescript.py",
    "tests/clients/test_whole_answers.py",
    "tests/core/test_connection.py",
    "tests/core/test_feed.py",
    "tests/core/test_large_endings.py",
    "tests/core/test_presence.py",
    "tests/core/test_publisher.py",
    "tests/core/test_reader.py",
    "tests/core/test_removal.py",
    "tests/core/test_tail.py",
    "tests/core/test_topology.py",
    "tests/core/test_view_size.py",
)
"""What is among them and tests something else. Named, so that what is added later takes part."""
TOLD_LINES = 60
"""Of what a pass that fails has printed: its last ones, as all of it is kept."""


class Options(argparse.Namespace):
    """What was asked for on the command line."""

    times: int
    lanes: int
    directory: Path | None
    rest: Sequence[str]


class Passes:
    """Passes over the same tests, until there were so many, or one has failed."""

    def __init__(self, arguments: Sequence[str], directory: Path, times: int) -> None:
        self._arguments = arguments
        self._directory = directory
        self._times = times
        self._began = time.monotonic()
        self._green = 0
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self.failed: Path | None = None
        """What the first pass that failed has printed."""

    def one(self, number: int) -> None:
        """Run all tests once, unless a pass has failed."""
        printed = self._directory / f"pass-{number}.log"
        command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *self._arguments)
        with printed.open("wb") as output:
            with self._lock:
                if self.failed is not None:
                    return
                # A session of its own: a terminal's Ctrl-C would end its servers before it can.
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
                self._running.add(process)
            code = process.wait()
        with self._lock:
            self._running.discard(process)
            if self.failed is None:
                self._note(code, number, printed)

    def _note(self, code: int, number: int, printed: Path) -> None:
        minutes = (time.monotonic() - self._began) / 60
        if code:
            self.failed = printed
            print(f"pass {number} has failed after {minutes:.1f} min; {self._green} were green before")
            self._end()
            return
        self._green += 1
        print(f"{self._green} of {self._times} green, {minutes:.1f} min")
        sys.stdout.flush()

    def stop(self) -> None:
        """Begin no other pass, and end those that run."""
        with self._lock:
            self.failed = self.failed or self._directory
            self._end()

    def _end(self) -> None:
        for process in self._running:
            process.send_signal(signal.SIGINT)


def parsed(argv: Sequence[str] | None = None) -> Options:
    """Read the command line; what it does not know is pytest's."""
    parser = argparse.ArgumentParser(prog="python -m tests.again", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=50, help="how many passes [50]")
    parser.add_argument("--lanes", type=int, default=4, help="how many of them beside each other [4]")
    parser.add_argument("--directory", type=Path, help="where what they print goes [a new one in the temporary one]")
    options, rest = parser.parse_known_args(argv, namespace=Options())
    options.rest = rest or (*LIFE, *(f"--ignore={path}" for path in OTHERS))
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run them; the exit code is 1 if one has failed."""
    options = parsed(argv)
    directory = options.directory or Path(tempfile.mkdtemp(prefix="runstream-again-"))
    directory.mkdir(parents=True, exist_ok=True)
    print(
        f"{options.times} passes over {' '.join(options.rest)}, {options.lanes} at a time; what they print: {directory}"
    )
    passes = Passes(options.rest, directory, options.times)
    with ThreadPoolExecutor(options.lanes) as lanes:
        try:
            for done in as_completed([lanes.submit(passes.one, number + 1) for number in range(options.times)]):
                done.result()
        except KeyboardInterrupt:
            passes.stop()
            return 130
    if passes.failed is None:
        return 0
    print("\n".join(passes.failed.read_text(encoding="utf-8", errors="replace").splitlines()[-TOLD_LINES:]))
    return 1


if __name__ == "__main__":
    sys.exit(main())
