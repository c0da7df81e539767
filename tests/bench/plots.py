"""Draws the plots of a report, in an environment that has matplotlib: `plots.py <latest.json>`, beside that file."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

OWN, OTHER = "#0b6e4f", "#9aa5b1"
WIDE = (8.0, 4.0)


def main(numbers: Path) -> None:
    """Draw what there are numbers for."""
    mpl.use("agg")
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "savefig.dpi": 150})
    scenarios = json.loads(numbers.read_text(encoding="utf-8"))["scenarios"]
    if "fanout" in scenarios:
        draw_cpu(scenarios["fanout"], numbers.with_name("fanout-cpu.png"))
        draw_delays(scenarios["fanout"], numbers.with_name("fanout-delay.png"))
    draw_targets(scenarios, numbers.with_name("targets.png"))


def colour(who: str) -> str:
    """Runstream's own, or that of all others."""
    return OWN if who == "runstream" else OTHER


def draw_cpu(fanout: dict[str, Any], path: Path) -> None:
    """What one delivered chunk costs, with as many followers as each was compared with."""
    found = [each for each in fanout["figures"] if each["what"] == "CPU per chunk"]
    largest = {each["who"]: each for each in found if each["who"] not in ("runstream", "the floor: a loop of `send`")}
    compared = {each["case"] for each in largest.values()} or {found[-1]["case"]}
    bars = [each for each in found if each["case"] in compared]
    bars.sort(key=lambda each: -each["median"])
    figure, axes = plt.subplots(figsize=WIDE)
    names = [f"{each['who'].replace('`', '')}\n{each['case']}" for each in bars]
    drawn = axes.barh(names, [each["median"] for each in bars], color=[colour(each["who"]) for each in bars])
    axes.bar_label(drawn, fmt="%.1f", padding=3)
    axes.set_xlabel("µs of the server's CPU per delivered chunk")
    save(figure, path)


def draw_delays(fanout: dict[str, Any], path: Path) -> None:
    """How long chunks were on their way, as percentiles."""
    figure, axes = plt.subplots(figsize=WIDE)
    compared = {
        case.partition(" / ")[2] for case in fanout["delays"] if not case.startswith(("runstream /", "the floor"))
    }
    for case, runs in fanout["delays"].items():
        who, _, followers = case.partition(" / ")
        if compared and followers not in compared:
            continue
        curve = [statistics.median(run[at] for run in runs) for at in range(100)]
        axes.plot(range(100), curve, label=case.replace("`", ""), linewidth=2 if who == "runstream" else 1)
    axes.set_yscale("log")
    axes.set_xlabel("percentile")
    axes.set_ylabel("ms from the writer to the reader")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path)


def draw_targets(scenarios: dict[str, Any], path: Path) -> None:
    """Every figure with a target, as a part of what it may be: to the left of the line is met."""
    figures = [each for scenario in scenarios.values() for each in scenario["figures"] if each["met"] is not None]
    if not figures:
        return
    parts = [part(each) for each in figures]
    names = [f"{each['case']}: {each['what']}" for each in figures]
    figure, axes = plt.subplots(figsize=(WIDE[0], 1 + 0.25 * len(figures)))
    axes.barh(names, parts, color=[OWN if each <= 1 else "#c44536" for each in parts])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("measured, as a part of the target")
    save(figure, path)


def part(figure: dict[str, Any]) -> float:
    """What a figure is of its target; above 1 is missed, whichever way the target points."""
    smallest = 1e-3
    if figure["at_most"] is not None:
        measured: float = figure["median"] / max(figure["at_most"], smallest)
    else:
        measured = figure["at_least"] / max(figure["median"], smallest)
    return max(measured, smallest)


def save(figure: Any, path: Path) -> None:
    """Write it."""
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
