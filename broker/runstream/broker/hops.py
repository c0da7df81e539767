"""The runs that a request has come by: each marks in `Via` what its agent is asked, so that no run asks for itself.

An agent's address may lead back to whoever has the run: by a mistyped port, or by another runstream whose agent leads
here. Every answer would be another run, without end, and a restart would go on with them all.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from runstream.schemas import RUN_PATH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["MOST_HOPS", "VIA", "hops_in", "via"]

VIA: Final = "Via"
MARK: Final = "runstream-"
HOP: Final = re.compile(rf"(?<!\S){MARK}({RUN_PATH.pattern.strip('^$')})(?![^\s,])")

MOST_HOPS: Final = 8
"""A request that has come by so many runs is refused: one runstream in front of another is a design, this a circle."""


def hops_in(headers: Mapping[str, str]) -> list[str]:
    """Read which runs a request has come by, the first one first."""
    return [run for name, value in headers.items() if name.lower() == VIA.lower() for run in HOP.findall(value)]


def via(hops: Sequence[str]) -> str:
    """Say which runs a request has come by."""
    return ", ".join(f"1.1 {MARK}{run_id}" for run_id in hops)
