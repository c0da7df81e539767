"""What the machine does by itself is no service's doing, and is seen."""

import os
import time
from pathlib import Path

import pytest

from tests.chaos import starving
from tests.chaos.calm import Faults
from tests.chaos.excuses import REFUSALS, RESPONSES, Concerned
from tests.chaos.history import Fault
from tests.chaos.starving import Waits, waits_noted
from tests.support.waiting import wait_until

AWAY = 2**22 + 1
"""Above the highest number that a process may have."""


async def noted(pids: dict[str, int | None]) -> list[Fault]:
    """What is noted first."""
    faults: list[Fault] = []
    async with waits_noted(lambda: pids, faults.append):
        await wait_until(lambda: faults)
    return faults


async def test_everything_stands_still_with_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an outage explains this does, whoever was concerned: all lines are in the process that stood still."""
    monkeypatch.setattr(starving, "STILL_SECONDS", -1.0)  # whoever looks again has stood still
    began = time.monotonic()
    fault = (await noted({}))[0]
    assert began <= fault.at < fault.ended <= time.monotonic()  # type: ignore[operator]
    assert (fault.name, fault.target) == ("stand still", "machine")
    assert Faults([fault]).explain(fault.at, fault.at, REFUSALS["timeout"], Concerned())
    assert not Faults([fault]).explain(fault.at, fault.at, REFUSALS["store_full"], Concerned())


async def test_who_had_no_processor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody else is excused by it; who does not run waits for nothing."""
    monkeypatch.setattr(starving, "STARVED_SECONDS", -0.1)  # whoever runs has waited
    faults = await noted({"gateway-1": os.getpid(), "gateway-2": None})
    assert {(fault.name, fault.target) for fault in faults} == {("starve", "gateway-1")}
    for gateway, explained in [("gateway-1", True), ("gateway-2", False)]:
        at = faults[0].at
        assert Faults(faults).explain(at, at, RESPONSES["503"], Concerned(gateways=[gateway])) == explained


def test_the_kernel_counts_how_long_a_thread_has_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since it was asked last; of all threads the longest; and one that has only just begun for nothing."""
    task = tmp_path / "1" / "task"
    monkeypatch.setattr(starving, "PROC", tmp_path)
    waits = Waits()

    def counted(**waited: int) -> float:
        for name, count in waited.items():
            thread = task / name.removeprefix("t")
            thread.mkdir(parents=True, exist_ok=True)
            (thread / "schedstat").write_text(f"123 {count} 7\n")
        return waits.longest(1)

    assert counted(t11=10**12) == 0
    assert counted(t11=10**12 + 5 * 10**8, t12=9 * 10**9) == 0.5
    assert counted(t12=10 * 10**9) == 1
    assert counted() == 0


def test_of_who_does_not_run_nothing_is_counted() -> None:
    """Nor where the kernel does not count: then the driver's clock is all there is."""
    assert Waits().longest(AWAY) == 0
    own = Waits()
    assert own.longest(os.getpid()) == 0
    assert own.longest(os.getpid()) >= 0
