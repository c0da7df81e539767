"""A small file system, to be full: a tmpfs in a mount namespace that one process holds.

Its files are reached from here through `/proc/<pid>/root`, so that nobody else enters the namespace. In a user
namespace of its own nobody needs a privilege to mount; where those are forbidden, only root may. A container that may
do neither can be started with one: `docker run --tmpfs /small:size=512m`, and `RUNSTREAM_CHAOS_DISK=/small`.
"""

import asyncio
import contextlib
import os
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

WAYS = (("unshare", "--user", "--map-root-user", "--mount"), ("unshare", "--mount"))
SCRIPT = 'mount -t tmpfs -o size="$1",mode=700 runstream-chaos /mnt && echo mounted && exec cat'
"""`cat` ends when its input is closed, which is when whoever started it ends, however that is."""
GIVEN = "RUNSTREAM_CHAOS_DISK"
LARGEST_BYTES = 4 * 2**30
"""What is filled up is somebody's: a file system that is larger than this was not meant to be."""
REMEDY = (
    "a small file system cannot be mounted: allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, "
    "kernel.apparmor_restrict_unprivileged_userns=0), or run as root with CAP_SYS_ADMIN (docker run --cap-add "
    "SYS_ADMIN --security-opt apparmor=unconfined), or give one that is mounted already (docker run --tmpfs "
    f"/small:size=512m -e {GIVEN}=/small)"
)


class NoSmallDisk(OSError):
    """There is none, and none can be made: what to do about it."""


class SmallDisk:
    """A mounted file system of a few megabytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """Where its root is, for processes of this user."""
        self._ballast = path / "ballast"

    @property
    def free_bytes(self) -> int:
        """What `df` says."""
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    def fill(self) -> int:
        """Leave no byte to anybody else; returns how many that took."""
        taken = 0
        with self._ballast.open("ab", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        taken += file.write(b"." * size)
        return taken

    def empty(self) -> None:
        """Give back what `fill` has taken."""
        self._ballast.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def small_disk(size_bytes: int) -> AsyncIterator[SmallDisk]:
    """A file system of that size while the block lasts, or a directory of the one that is given.

    Raises `NoSmallDisk`, with what to do, where none can be mounted, and where the given one is not small.
    """
    if GIVEN in os.environ:
        with tempfile.TemporaryDirectory(dir=os.environ[GIVEN]) as directory:
            state = os.statvfs(directory)
            if (size := state.f_blocks * state.f_frsize) > LARGEST_BYTES:
                complaint = f"{GIVEN}={os.environ[GIVEN]} has {size} bytes, and would be filled up: give a small one"
                raise NoSmallDisk(complaint)
            yield SmallDisk(Path(directory))
        return
    holder = await _mounted(size_bytes)
    try:
        yield SmallDisk(Path(f"/proc/{holder.pid}/root/mnt"))
    finally:
        await _ended(holder)


async def _mounted(size_bytes: int) -> Process:
    """Start what holds the mount."""
    complaints = []
    for way in WAYS:
        holder = await asyncio.create_subprocess_exec(
            *way,
            "sh",
            "-c",
            SCRIPT,
            "sh",
            str(size_bytes),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
        )
        assert holder.stdout is not None
        assert holder.stderr is not None
        if await holder.stdout.readline() == b"mounted\n":
            return holder
        complaints.append(f"{' '.join(way)}: {(await holder.stderr.read()).decode().strip()}")
        await _ended(holder)
    raise NoSmallDisk(f"{REMEDY}; tried {'; '.join(complaints)}")


async def _ended(holder: Process) -> None:
    assert holder.stdin is not None
    holder.stdin.close()
    with contextlib.suppress(OSError):  # it had ended before it read
        await holder.stdin.wait_closed()
    await holder.wait()
