"""The report: a table for people, the same numbers and more for machines."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.figures import Figure

VERDICTS = {True: "yes", False: "**MISSED**", None: ""}
HEADER = ("figure", "target p50", "p50", "p99", "samples", "ok?", "note")


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table."""
    rows = [HEADER, tuple("---" for _ in HEADER)]
    rows += [
        (
            figure.name,
            "" if figure.target_ms is None else f"≤ {figure.target_ms:g} ms",
            f"{figure.p50:.2f} ms",
            f"{figure.p99:.2f} ms",
            f"{len(figure.rounds)} x {len(figure.rounds[0])}",
            VERDICTS[figure.is_met],
            figure.note,
        )
        for figure in figures
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def verdict(figures: Sequence[Figure]) -> str:
    """One sentence on the targets."""
    judged = [figure for figure in figures if figure.is_met is not None]
    missed = [figure.name for figure in judged if not figure.is_met]
    if not missed:
        return f"All {len(judged)} targets are met."
    return f"**{len(missed)} of {len(judged)} targets missed**: {'; '.join(missed)}."


def markdown(figures: Sequence[Figure], machine: dict[str, Any]) -> str:
    """The whole report."""
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    return f"""# What runstream costs

{machine["cores"]} cores of {machine["cpu"]}, {machine["kernel"]}, {machine["python"]}, \
nats-server {machine["nats_server"]}, {libraries}; load average before: {machine["load_average_before"]}.
`runstream up` with its embedded nats-server, the writer and the readers share this machine, each in a process of its
own. Chunks have {machine["chunk_bytes"]} bytes. p50 and p99 are medians over the rounds.

{table(figures)}

{verdict(figures)}
"""


def write(directory: Path, figures: Sequence[Figure], machine: dict[str, Any], text: str) -> None:
    """Write `latest.json` and `latest.md`."""
    directory.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine, "figures": [figure.to_json() for figure in figures]}
    (directory / "latest.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (directory / "latest.md").write_text(text, encoding="utf-8")
