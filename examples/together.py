"""Starts the programs of an example one after the other, and ends them the other way round."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import FrameType, TracebackType

__all__ = ["LOOPBACK", "PORT", "Together"]

LOOPBACK = "127.0.0.1"
PORT = int(os.environ.get("EXAMPLE_PORT", "8000"))
"""Where the example's own server listens; runstream's ports are 8283 and 8284 (`RUNSTREAM_PORT`)."""
PATIENCE_SECONDS = 30.0
"""What a program may take until it listens."""


class Together:
    """The programs of one example. Ctrl-C, or SIGTERM, leaves the block, and with it the programs end."""

    def __init__(self) -> None:
        self._programs: list[subprocess.Popen[str]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._stack.close()
        return isinstance(error, KeyboardInterrupt)

    def runstream(self, *options: str, **settings: str) -> dict[str, str]:
        """Start `runstream up`; returns where its gateway, its broker and its nats-server are."""
        program = self._start(["-m", "runstream.gateway", "up", *options], settings, stdout=subprocess.PIPE)
        if program.stdout is None or not program.stdout.readline():
            raise SystemExit("runstream does not start: it has said why.")
        note = Path(os.environ.get("RUNSTREAM_DATA_DIR", ".runstream")) / "endpoints.json"
        endpoints: dict[str, str] = json.loads(note.read_text(encoding="utf-8"))
        return endpoints

    def server(self, *arguments: str, **environment: str) -> str:
        """Start a Python program that listens on `PORT`; returns its address, once it does."""
        program = self._start(arguments, environment)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while program.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, PORT), timeout=1):
                return f"http://{LOOPBACK}:{PORT}"
            time.sleep(0.05)
        raise SystemExit("The example's server does not start: it has said why.")

    def rest(self, *says: str) -> None:
        """Say what there is to try, and wait for Ctrl-C, or until a program ends by itself."""
        print("", *says, "Ctrl-C ends it.", sep="\n", flush=True)
        while all(program.poll() is None for program in self._programs):
            time.sleep(0.2)

    def _start(
        self, arguments: Sequence[str], environment: Mapping[str, str], *, stdout: int | None = None
    ) -> subprocess.Popen[str]:
        # In a group of its own: Ctrl-C would end all at once, and a platform's runs need runstream to the last.
        program = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **environment},
            stdout=stdout,
            text=True,
            process_group=0,
        )
        self._programs.append(program)
        self._stack.enter_context(program)
        self._stack.callback(program.terminate)
        return program


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise KeyboardInterrupt
