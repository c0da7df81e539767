"""The record of a chaos run: what was written, what was read, and what was done to the services meanwhile.

A directory has one file of NDJSON per recording process, whose name begins with its role: `writer`, `reader` or
`driver`. A record is in its file before the process goes on, so that one that is killed has said what it knew; half a
line at the end is nobody's. The services never touch any of it.

Times are `time.monotonic()`: seconds of CLOCK_MONOTONIC, which all processes of a machine share. A run is known by its
`token`, which its writer makes before it has an id, and which each of its chunks carries; `index` counts its chunks.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

import msgspec

Role: TypeAlias = Literal["writer", "reader", "driver"]
Mode: TypeAlias = Literal["library", "ingest", "capture"]
ReaderKind: TypeAlias = Literal["letta", "letta_client", "event_source"]
EventKind: TypeAlias = Literal["chunk", "ping", "stop", "usage", "error", "done", "notice"]
How: TypeAlias = Literal["done", "no_content", "clean", "cut", "refused", "unreachable", "announced"]
FaultKind: TypeAlias = Literal["outage", "drain", "full", "retention"]

OUT_OF_PATIENCE = "out of patience"
"""Why a process of the load has left what it was at: it was told to finish, and could not in time."""

now = time.monotonic
_OWN = re.compile(r"p[0-9]+(n[0-9]+)?$")


class _Record(
    msgspec.Struct,
    kw_only=True,
    omit_defaults=True,
    tag_field="is",
    tag=lambda name: re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower(),
):
    """One line."""

    at: float
    """When it was so, as its process saw it."""


class Opening(_Record):
    """A writer is about to open a run."""

    token: str
    mode: Mode
    background: bool = True


class Opened(_Record):
    """The run is there: from now on it can be read."""

    token: str
    run_id: str
    background: bool = True


class Said(_Record):
    """A writer is about to send these chunks, from `index` on, for the first time or again.

    Of a captured run it is what the agent is about to be asked for, all at once.
    """

    token: str
    index: int
    digests: list[int]


class Stored(_Record):
    """The chunks from `index` on were acknowledged; `sent` is when their writer sent them."""

    token: str
    index: int
    count: int
    sent: float
    last_seq: int | None = None


class Refused(_Record):
    """A writer's request was refused, or its answer lost; it goes on trying.

    `place` is what it talked to, and `since` when it asked.
    """

    token: str
    why: str
    place: str
    since: float | None = None


class Cancelling(_Record):
    """Somebody is about to ask that the run be cancelled."""

    token: str


class Ending(_Record):
    """The writer has said all, and is about to end the run."""

    token: str
    stop_reason: str


class Ended(_Record):
    """The end was acknowledged."""

    token: str
    stop_reason: str


class GaveUp(_Record):
    """The writer writes no more to the run, and has not ended it: `why` is the error's name, the rest as above."""

    token: str
    why: str
    place: str
    since: float | None = None


class Joined(_Record):
    """A reader has begun with a run, after the sequence `after`; 0 is from the beginning.

    Its name is that of its process's file, a hyphen, and what tells it from the others there.
    """

    reader: str
    token: str
    kind: ReaderKind
    after: int = 0


class Connected(_Record):
    """A reader was answered with a stream by a gateway, having asked for what comes after `after`."""

    reader: str
    gateway: str
    after: int = 0


class Got(_Record):
    """A reader was shown an event: `token`, `index` and `digest` of a chunk as it reads, `text` of anything else.

    `text` is the stop reason, or the type of the error, and `digest`, if it is there, that of all that was shown; a
    `notice` is an error that is the response's, not the run's.
    """

    reader: str
    seq: int | None = None
    kind: EventKind = "chunk"
    token: str = ""
    index: int = -1
    digest: int = 0
    text: str = ""


class Disconnected(_Record):
    """A response has ended, or there was none. What a reader ends by itself is no record.

    `since` is when the reader asked, or heard something last.
    """

    reader: str
    gateway: str
    how: How
    detail: str = ""
    since: float | None = None


class Stalled(_Record):
    """A reader read nothing from `since` until now, on purpose."""

    reader: str
    since: float


class Left(_Record):
    """A reader has gone before the end, on purpose, and will not come back."""

    reader: str
    why: str


class Fault(_Record):
    """What was done to the services, from `at` until they were well again, and whether it was seen to take effect.

    `target` is what it was done to, by the names that readers and writers have for it: a service, the way between two
    (`near->far`), or several with commas between them; what such a fault explains is in `excuses.py`. A process of the
    load that was killed is `gone`, by the name of its files, and its readers with it. `recovery` is how many seconds
    what it did may still be felt once it has ended, if that is longer than for others. `first_seq` is where the log
    begins since retention has passed, if that is known: no cursor from there on has expired.
    """

    name: str
    target: str
    ended: float | None = None
    effective: bool = True
    evidence: str = ""
    kind: FaultKind = "outage"
    gone: str = ""
    recovery: float = 0.0
    first_seq: int = 0


Record: TypeAlias = (
    Opening
    | Opened
    | Said
    | Stored
    | Refused
    | Cancelling
    | Ending
    | Ended
    | GaveUp
    | Joined
    | Connected
    | Got
    | Disconnected
    | Stalled
    | Left
    | Fault
)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


def process_of(name: str) -> str:
    """Which process of the load a run's token or a reader's name is of, as faults call it, whichever one it was.

    Both begin with the name of its files, which ends in `p` and a number that is another when it is started again; a
    token goes on with `n` and a count.
    """
    return _OWN.sub("", name.partition("-")[0])


class Recorder:
    """One process's file. What `write` was given is in it when `write` returns."""

    def __init__(self, directory: Path, role: Role, name: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = os.open(directory / f"{role}-{name}.ndjson", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)

    def write(self, *records: Record) -> None:
        """Append them, in one piece."""
        data = b"".join(_encode(record) + b"\n" for record in records)
        while data:
            data = data[os.write(self._file, data) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def files_of(directory: Path, role: Role) -> list[Path]:
    """Return the files of that role, in the order of their names."""
    return sorted(directory.glob(f"{role}-*.ndjson"))


def records_in(path: Path) -> Iterator[Record]:
    """Give a file's records as they were written; half a line at its end is left out."""
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield _decode(line)


def records_of(directory: Path, roles: Iterable[Role]) -> Iterator[Record]:
    """Give all records of those roles, file by file."""
    for role in roles:
        for path in files_of(directory, role):
            yield from records_in(path)


class Watch:
    """What writers have recorded since it was asked for last, of the types that are asked for."""

    def __init__(self, directory: Path, kinds: Sequence[type[Record]]) -> None:
        self._directory = directory
        self._starts = tuple(f'{{"is":"{kind.__struct_config__.tag}"'.encode() for kind in kinds)
        self._offsets: dict[Path, int] = {}

    def news(self) -> list[Record]:
        """Read what is new in whole lines."""
        found: list[Record] = []
        for path in files_of(self._directory, "writer"):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self._offsets[path] = self._offsets.get(path, 0) + whole
            found += [_decode(line) for line in data[:whole].splitlines() if line.startswith(self._starts)]
        return found
