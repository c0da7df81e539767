"""Figures, and what the report makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench import report
from tests.bench.bench import Findings
from tests.bench.environments import ROOT
from tests.bench.figures import RATIO, Figure, NothingMeasured, percentile
from tests.bench.run import RESULTS
from tests.bench.scenarios import NAMES, quick, whole

MACHINE = {
    "cores": 2,
    "cpu": "a CPU",
    "kernel": "Linux 6",
    "python": "CPython 3.11",
    "libraries": {"nats-py": "2.16.0"},
    "load_average_before": 0.1,
}


def found(*figures: Figure) -> dict[str, Any]:
    """The raw numbers of one scenario with these figures, as they are read back from a file."""
    findings = Findings({figure.key: figure for figure in figures})
    scenarios = {"fanout": report.raw(findings, "Live fan-out")}
    whole_of_it = {"format": report.FORMAT, "machine": MACHINE, "runs": 5, "scenarios": scenarios}
    parsed: dict[str, Any] = json.loads(json.dumps(whole_of_it))
    return parsed


def figure(*runs: float, unit: str = "ms", at_most: float | None = None, at_least: float | None = None) -> Figure:
    return Figure("runstream", "300 followers", f"delay in {unit}", unit, at_most, at_least, list(runs))


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 2), (75, 3), (99, 4), (100, 4)])
def test_a_percentile_is_a_sample(percent: float, expected: float) -> None:
    """The smallest that is at least as large as so many of all."""
    assert percentile([4, 1, 3, 2], percent) == expected


def test_what_counts_is_the_median_of_the_runs() -> None:
    """One run that something else spoilt does not decide."""
    assert figure(1.0, 900.0, 1.2, at_most=2).is_met
    with pytest.raises(NothingMeasured):
        _ = figure().median


@pytest.mark.parametrize(
    ("given", "met", "target"),
    [
        ({"at_most": 2.0}, True, "≤ 2 ms"),
        ({"at_most": 1.0}, False, "≤ 1 ms"),
        ({"at_least": 400_000.0}, False, "≥ 400,000 ms"),
        ({"at_least": 1.5}, True, "≥ 1.5 ms"),
        ({}, None, ""),
    ],
)
def test_a_target_is_a_bound_on_either_side(given: dict[str, float], met: bool | None, target: str) -> None:
    """Or there is none."""
    measured = figure(1.5, at_most=given.get("at_most"), at_least=given.get("at_least"))
    assert (measured.is_met, measured.target) == (met, target)
    assert Figure.from_json(json.loads(json.dumps(measured.to_json()))) == measured


def test_the_report_has_ratios_first_and_says_what_is_missed() -> None:
    """A number of another machine's says little; a ratio does."""
    text = report.markdown(found(figure(7.5, 7.1, 8.0, at_most=6), figure(1.38, 1.4, 1.36, unit=RATIO, at_most=1.5)))
    rows = [line for line in text.splitlines() if line.startswith("| runstream")]
    assert rows == [
        "| runstream | 300 followers | delay in x | ≤ 1.5 x | 1.38 x | 1.36 to 1.40 | yes |",
        "| runstream | 300 followers | delay in ms | ≤ 6 ms | 7.50 ms | 7.10 to 8.00 | **no** |",
    ]
    assert "**1 of 2 targets are missed**: 300 followers: delay in ms 7.50 ms (≤ 6 ms)." in text


def test_who_is_compared_stands_side_by_side() -> None:
    """A row each; what has a target stands above, too."""
    peer = Figure("a peer", "300 followers", "delay in ms", "ms", runs=[30.0])
    lines = report.markdown(found(figure(7.5, at_most=8), peer)).splitlines()
    assert "| who | case | delay in ms |" in lines
    assert "| runstream | 300 followers | 7.50 ms |" in lines
    assert "| a peer | 300 followers | 30.0 ms |" in lines
    assert "| runstream | 300 followers | delay in ms | ≤ 8 ms | 7.50 ms | 7.50 to 7.50 | yes |" in lines


def test_a_small_form_is_not_judged() -> None:
    """Its sizes are not those that the targets are for."""
    findings = Findings(is_judged=False)
    findings.add("runstream", "10 followers", "delay", "ms", 1000, at_most=1)
    (only,) = findings.figures.values()
    assert only.is_met is None
    assert "small form" in report.verdict([only])


def test_the_readme_shows_what_has_a_target() -> None:
    """With the machine that it was measured on; not what is measured besides."""
    shown = report.summary(found(figure(7.5, at_most=6), figure(3.0, unit="µs")))
    assert "7.50 ms" in shown
    assert "µs" not in shown
    assert "2 cores of a CPU" in shown


def test_the_readme_shows_who_was_compared() -> None:
    """Side by side, above the targets, which say whose each figure is."""
    peer = Figure("a peer", "300 followers", "delay in ms", "ms", runs=[30.0])
    lines = report.summary(found(figure(7.5, at_most=8), peer)).splitlines()
    assert "| a peer | 300 followers | 30.0 ms |" in lines
    assert "| runstream | 300 followers | delay in ms | ≤ 8 ms | 7.50 ms | 7.50 to 7.50 | yes |" in lines


def test_the_readme_says_what_the_committed_bench_has_printed() -> None:
    """Nobody writes a number there by hand."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    numbers = RESULTS / "latest.json"
    if numbers.exists():
        shown = f"\n{report.summary(json.loads(numbers.read_text(encoding='utf-8')))}\n"
        assert readme == report.with_figures(readme, shown)
    else:
        assert f"{report.README_BEGIN}\n{report.README_END}" in readme


def test_both_forms_have_all_nine_scenarios() -> None:
    """By the names that `--only` takes."""
    assert tuple(each.name for each in whole()) == tuple(each.name for each in quick()) == NAMES


def test_the_report_is_written_as_it_is_read(tmp_path: Path) -> None:
    """The tables are made of the numbers, and of nothing else."""
    numbers = report.write(tmp_path, found(figure(1.0)))
    again = json.loads(numbers.read_text(encoding="utf-8"))
    assert (tmp_path / "latest.md").read_text(encoding="utf-8") == report.markdown(again)
