"""Says on stderr what goes on: a bar on a terminal, lines where that is none."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Bar:
    """So many steps, and what the present one does."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=steps)
        self._at = ""

    @classmethod
    @contextlib.contextmanager
    def of(cls, steps: int) -> Iterator[Self]:
        """Show it while the block lasts."""
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            yield cls(progress, steps)

    def begin(self, at: str) -> None:
        """Begin a step."""
        self._at = at
        self.say("")

    def say(self, what: str) -> None:
        """Say what the present step does."""
        text = f"{self._at}: {what}" if what else self._at
        self._progress.update(self._task, description=text)
        if self._progress.disable:
            sys.stderr.write(f"{text}\n")

    def end(self) -> None:
        """End a step."""
        self._progress.advance(self._task)
