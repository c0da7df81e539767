"""The machine that was measured on, without names or paths, and how much of it a process has used."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from tests.support.processes import descendants

LIBRARIES = ("aiohttp", "msgspec", "nats-py", "uvloop")


def facts() -> dict[str, Any]:
    """What the numbers depend on beside the source."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu_model(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "load_average_before": None if load is None else round(load, 2),
    }


def _cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class CpuMeter:
    """Seconds of CPU that a `runstream up` uses: its own process, and the nats-server it started. Linux only."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._begin = self._now()

    def used(self) -> tuple[float, float]:
        """Seconds since this meter was made: gateway and broker, nats-server."""
        now = self._now()
        return now[0] - self._begin[0], now[1] - self._begin[1]

    def _now(self) -> tuple[float, float]:
        if sys.platform != "linux":
            return 0.0, 0.0
        return _seconds(self._pid), sum(map(_seconds, descendants(self._pid)))


def _seconds(pid: int) -> float:
    """User and system time of one process; 0 for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
