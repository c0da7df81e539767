"""What documents show: their blocks of code, and a desk at which a reader types them as they stand."""

import contextlib
import functools
import os
import re
import shlex
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.support.nats import free_ports
from tests.support.processes import RunningProcess, running

ROOT = Path(__file__).parents[2]
SOURCE = os.pathsep.join(str(ROOT / part) for part in (".", "schemas", "broker", "gateway"))
"""The source as it lies, for processes that are started elsewhere."""
PORTS = (8283, 8284, 9283, 4222, 8000, 8080, 8300)
"""Those that documents name, on localhost: each stands for one that is free here."""
# What a reader's own make is told of the make that these tests may be run by.
NO_MAKE = {"MAKEFLAGS": "", "MAKELEVEL": "", "ARGS": ""}

# The command that a reader has after `make install`: with the addresses of this machine in place of a document's.
COMMAND = """\
#!{python}
import os, sys
args = sys.argv[1:]
for written, here in {replaced!r}.items():
    # An address wherever it stands, a port where it stands alone.
    args = [here if arg == written else arg.replace(written, here) if ":" in written else arg for arg in args]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), {source!r}]))
os.execv(sys.executable, [sys.executable, "-m", "runstream.gateway", *args])
"""


class Block(NamedTuple):
    """A block of code, and where it stands."""

    document: str
    heading: str
    language: str
    code: str


def documents() -> list[str]:
    """The README, and all that is below docs and examples."""
    found = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
    return ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in found)]


@functools.cache
def blocks(document: str) -> list[Block]:
    """All blocks of a document, in order."""
    return list(_blocks(document))


def _blocks(document: str) -> Iterator[Block]:
    heading, language, code = "", None, list[str]()
    for line in (ROOT / document).read_text(encoding="utf-8").splitlines():
        fence = re.match(r"\s*```(.*)$", line)
        if fence is None:
            if language is not None:
                code.append(f"{line}\n")
            elif line.startswith("#"):
                heading = line.lstrip("#").strip()
        elif language is None:
            language, code = fence[1].strip(), []
        else:
            yield Block(document, heading, language, "".join(code))
            language = None
    assert language is None, f"{document}: a block that does not end, below {heading!r}"


def blocks_below(document: str, heading: str, language: str) -> list[str]:
    """The blocks in `language` that stand directly below a heading, in order.

    All three are written out where this is called: `tests/unit/test_blocks.py` reads there which blocks are run.
    """
    found = [block.code for block in blocks(document) if (block.heading, block.language) == (heading, language)]
    assert found, f"{document} has no block in {language} below {heading!r}"
    return found


@dataclass(frozen=True)
class Desk:
    """A directory in which a reader works, and where the addresses are that documents name."""

    directory: Path
    addresses: Mapping[str, str]
    env: Mapping[str, str]

    def port(self, of: int) -> int:
        """What stands here for a port that documents name."""
        return int(self.addresses[f"localhost:{of}"].rpartition(":")[2])

    def base(self, of: int = 8283) -> str:
        """The URL of what listens there."""
        return f"http://127.0.0.1:{self.port(of)}"

    def here(self, code: str) -> str:
        """A program with the addresses of this machine in place of a document's."""
        for written, here in self.addresses.items():
            code = code.replace(written, here)
        return code

    @contextlib.asynccontextmanager
    async def typing(self, code: str, env: Mapping[str, str] | None = None) -> AsyncIterator[RunningProcess]:
        """A shell that runs this, and waits for what it has put into the background, as a terminal's does."""
        given = {**self.env, **(env or {})}
        async with running(
            "sh", "-c", f"{code}\nstatus=$?; wait; exit $status", env=given, cwd=self.directory
        ) as shell:
            yield shell


def desk_in(directory: Path, addresses: Mapping[str, str] | None = None) -> Desk:
    """A desk; `addresses` says where things are that are there already, such as `localhost:8283`, without a scheme."""
    free = zip((f"localhost:{port}" for port in PORTS), free_ports(len(PORTS)), strict=True)
    # The longer ones first: one may be the beginning of another.
    known = {**{name: f"127.0.0.1:{port}" for name, port in free}, **(addresses or {})}
    desk = Desk(directory, dict(sorted(known.items(), key=lambda item: -len(item[0]))), {})
    alone = {name.rpartition(":")[2]: here.rpartition(":")[2] for name, here in known.items() if "localhost" in name}
    command = directory / "bin" / "runstream"
    command.parent.mkdir(exist_ok=True)
    replaced = {**desk.addresses, **alone}
    command.write_text(COMMAND.format(python=sys.executable, replaced=replaced, source=SOURCE), encoding="utf-8")
    command.chmod(0o700)
    lines = (f'connect-to = "{name}:{here}"\n' for name, here in known.items() if "localhost" in name)
    (directory / ".curlrc").write_text("".join(lines), encoding="utf-8")
    env = {
        **NO_MAKE,
        "CURL_HOME": str(directory),
        "EXAMPLE_PORT": str(desk.port(8000)),
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": SOURCE,
        "RUNSTREAM_BROKER_PORT": str(desk.port(8284)),
        "RUNSTREAM_PORT": str(desk.port(8283)),
    }
    return Desk(directory, desk.addresses, env)


def made(line: str) -> list[str]:
    """The argv of `make …` as a document has it, with this very environment as `.venv`, which is not made anew."""
    make, *targets = shlex.split(line)
    assert make == "make", line
    return [make, "--no-print-directory", f"VENV={sys.prefix}", f"--assume-old={sys.prefix}/.installed", *targets]


@contextlib.asynccontextmanager
async def making(line: str, desk: Desk) -> AsyncIterator[RunningProcess]:
    """What `make …` starts; what it keeps is in the desk's directory."""
    env = {**desk.env, "RUNSTREAM_DATA_DIR": str(desk.directory / ".runstream")}
    async with running(*made(line), env=env, cwd=ROOT) as process:
        yield process
