"""The bench runs: nothing is judged here, and everything is measured once that the other scenarios are made of."""

from pathlib import Path

import pytest

from tests.bench.environments import NotInstalled
from tests.bench.peers import floor
from tests.bench.peers.contender import Entry
from tests.bench.run import Absent
from tests.bench.run import install as install_all
from tests.support.processes import python, running


async def test_the_quick_form_measures_and_prints_a_table() -> None:
    """Runstream and the floor, each with followers who see every chunk."""
    async with running(*python("-m", "tests.bench.run", "--quick", "--only", "fanout")) as bench:
        assert await bench.wait(60) == 0, bench.report()
    rows = [line for line in bench.lines if line.startswith("|")]
    assert any("runstream | 100 followers | CPU per chunk, to the floor" in row for row in rows)
    assert any("floor" in row and "100 followers" in row and "ms" in row for row in rows)


async def test_a_scenario_that_there_is_not_is_refused() -> None:
    """In words that say which there are."""
    async with running(*python("-m", "tests.bench.run", "--only", "fan-out")) as bench:
        assert await bench.wait(30) == 2
    assert any("many-runs" in line for line in bench.errors)


@pytest.mark.parametrize("runs", ["0", "-3", "x"])
async def test_a_number_of_runs_that_is_none_is_refused(runs: str) -> None:
    """Before anything is installed or measured."""
    async with running(*python("-m", "tests.bench.run", "--quick", f"--runs={runs}")) as bench:
        assert await bench.wait(30) == 2
    assert any(f"{runs} is no number of runs" in line for line in bench.errors)


async def test_a_directory_that_nothing_can_be_written_to_is_refused(tmp_path: Path) -> None:
    """Before anything is measured, which takes half an hour."""
    (tmp_path / "file").write_text("")
    wanted = ("--quick", "--only", "create", "--results", str(tmp_path / "file" / "below"))
    async with running(*python("-m", "tests.bench.run", *wanted)) as bench:
        assert await bench.wait(30) == 1
    assert any("cannot be carried out" in line for line in bench.errors)
    assert not bench.lines


def test_a_peer_that_cannot_be_had_fails_the_bench_by_its_name() -> None:
    """The table is of all of them, or there is none."""

    def nowhere() -> None:
        raise NotInstalled("no such package")

    peers = [
        Entry(name, name, floor.serving, install) for name, install in (("a", nowhere), ("b", int), ("c", nowhere))
    ]
    with pytest.raises(Absent, match=r"^a: no such package\nc: no such package$"):
        install_all(peers)
