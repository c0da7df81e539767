"""The report: tables for people, the same numbers and more for machines. Pure, but for `write`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.bench import Findings
from tests.bench.figures import RATIO, Figure, with_unit

FORMAT = 2
VERDICTS = {True: "yes", False: "**no**", None: ""}
HEADER = ("who", "case", "what", "target", "median", "lowest to highest", "met")
LARGE, SMALL = 100, 10
README_BEGIN, README_END = "<!-- figures -->", "<!-- end of figures -->"


def number(value: float) -> str:
    """A number with as many digits as mean something."""
    if abs(value) >= LARGE:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= SMALL else f"{value:.2f}"


def quantity(value: float, unit: str) -> str:
    """A number with its unit."""
    return with_unit(number(value), unit)


def row(figure: Figure) -> tuple[str, ...]:
    """One figure as a row."""
    return (
        figure.who,
        figure.case,
        figure.what,
        figure.target,
        quantity(figure.median, figure.unit),
        f"{number(min(figure.runs))} to {number(max(figure.runs))}",
        VERDICTS[figure.is_met],
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def is_compared(figure: Figure, figures: Sequence[Figure]) -> bool:
    """Whether others have the same quantity measured: they stand in one table, a row each."""
    return figure.unit != RATIO and len({each.who for each in figures if each.what == figure.what}) > 1


def side_by_side(figures: Sequence[Figure]) -> str:
    """A row for each who was measured, and what under, and a column for each quantity."""
    quantities = list(dict.fromkeys(figure.what for figure in figures))
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for figure in figures:
        rows.setdefault((figure.who, figure.case), {})[figure.what] = quantity(figure.median, figure.unit)
    cells = [[*at, *(found.get(what, "") for what in quantities)] for at, found in rows.items()]
    return table(["who", "case", *quantities], cells)


def figures_of(scenario: dict[str, Any]) -> list[Figure]:
    """The figures of a scenario, ratios first: they hold on other machines, too."""
    found = [Figure.from_json(figure) for figure in scenario["figures"]]
    return sorted(found, key=lambda figure: figure.unit != RATIO)


def verdict(figures: Sequence[Figure]) -> str:
    """One sentence on the targets."""
    judged = [figure for figure in figures if figure.is_met is not None]
    missed = [figure for figure in judged if not figure.is_met]
    if not judged:
        return "This is the small form: targets are for the whole one."
    if not missed:
        return f"All {len(judged)} targets are met."
    said = "; ".join(
        f"{figure.case}: {figure.what} {quantity(figure.median, figure.unit)} ({figure.target})" for figure in missed
    )
    return f"**{len(missed)} of {len(judged)} targets are missed**: {said}."


def machine_line(found: dict[str, Any]) -> str:
    """The machine, in a sentence."""
    machine = found["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['kernel']}, {machine['python']}, {libraries}; "
        f"load average before: {machine['load_average_before']}. Medians of {found['runs']}."
    )


def markdown(found: dict[str, Any]) -> str:
    """The whole report."""
    parts = ["# What runstream costs", machine_line(found), PREAMBLE]
    every: list[Figure] = []
    for name, scenario in found["scenarios"].items():
        figures = figures_of(scenario)
        every += figures
        compared = {figure.key for figure in figures if is_compared(figure, figures)}
        told = [row(figure) for figure in figures if figure.key not in compared or figure.is_met is not None]
        parts += [f"## {scenario['title']}", f"`{name}`", table(HEADER, told)]
        if compared:
            parts.append(side_by_side([figure for figure in figures if figure.key in compared]))
    return "\n\n".join([*parts, verdict(every)]) + "\n"


def summary(found: dict[str, Any]) -> str:
    """What the README shows: who was compared, every figure that has a target, and the machine it was measured on."""
    parts: list[str] = []
    figures: list[Figure] = []
    for scenario in found["scenarios"].values():
        measured = figures_of(scenario)
        figures += measured
        if compared := [figure for figure in measured if is_compared(figure, measured)]:
            parts.append(side_by_side(compared))
    targets = table(HEADER, [row(figure) for figure in figures if figure.is_met is not None])
    return "\n\n".join([*parts, targets, machine_line(found)])


def with_figures(readme: str, figures: str) -> str:
    """The README, with these figures in their place. Raises ValueError when there is no such place."""
    begin = readme.index(README_BEGIN) + len(README_BEGIN)
    end = readme.index(README_END, begin)
    return f"{readme[:begin]}\n{figures}\n{readme[end:]}"


def raw(findings: Findings, title: str) -> dict[str, Any]:
    """What the raw numbers hold of a scenario."""
    figures = [figure.to_json() for figure in findings.figures.values()]
    return {"title": title, "figures": figures, "delays": findings.delays}


def write(directory: Path, found: dict[str, Any]) -> Path:
    """Write `latest.json`, which it returns, and `latest.md`."""
    directory.mkdir(parents=True, exist_ok=True)
    numbers = directory / "latest.json"
    numbers.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (directory / "latest.md").write_text(markdown(found), encoding="utf-8")
    return numbers


PREAMBLE = """\
All processes share this machine: nats-server, broker and gateway, or a peer's server and its redis-server, the writer,
and one process with all readers. CPU is user's and system's time of the gateway, or of all processes of a peer's
server, and of nobody else; Letta's writer is not counted, and neither is runstream's. Delays are from the stamp that
the writer puts into a chunk to the reader's receipt, by one clock. Every reader checks that it has every chunk, once
and in order: a run in which one has not is no run."""
