"""Whose a connection is: what the kernel tells of the processes that may have made it (Linux)."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

TCP = Path("/proc/net/tcp")
"""One line for each socket: its number, its address, the other's, and its inode as the tenth word. Ports are four
hexadecimal digits behind the address."""


def caller_of(port: int, at: int, pids: Mapping[str, int | None]) -> str | None:
    """Which of these processes has connected from loopback's `port` to its port `at`; None if none of them has."""
    inode = _inode_of(port, at)
    held = f"socket:[{inode}]"
    return next((name for name, pid in pids.items() if inode and pid is not None and held in _files_of(pid)), None)


def _inode_of(port: int, at: int) -> str:
    own, other = f":{port:04X}", f":{at:04X}"
    with TCP.open(encoding="ascii") as lines:
        for line in lines:
            words = line.split()
            if words[1].endswith(own) and words[2].endswith(other):
                return words[9]
    return ""


def _files_of(pid: int) -> set[str]:
    """What its descriptors stand for."""
    found: set[str] = set()
    with contextlib.suppress(OSError):  # the process has ended
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # it was closed meanwhile
                found.add(str(entry.readlink()))
    return found
