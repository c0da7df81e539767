"""The chart's reference, made of its schema and its values: `python -m tests.deploy.reference` writes it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "runstream"
REFERENCE = CHART / "README.md"

_HEAD = """\
# Values of the chart

Made of [values.schema.json](values.schema.json) and [values.yaml](values.yaml); not to be edited. What is no value here
is refused, at `helm lint`, `template` and `install`. "A template" may have `{{ .Release.Name }}` and the like in it.
[deploy/README.md](../../README.md) says how to install it, and [examples](../../examples) has whole sets of values.
"""


def written() -> str:
    """The whole page."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    single, sections = [], []
    for name, value in schema["properties"].items():
        rows = list(_rows(name, value, values[name]))
        if len(rows) == 1:
            single += rows
        else:
            sections.append(f"## `{name}`\n\n{value['description']}\n\n{_table(rows)}")
    return "\n".join([_HEAD, _table(single), *sections])


def _rows(name: str, schema: dict[str, Any], value: Any) -> Iterator[tuple[str, str, str]]:
    """One row for each value that is described by itself."""
    inner = {key: each for key, each in schema.get("properties", {}).items() if "description" in each}
    if inner:
        for key, each in inner.items():
            # A probe has more settings than those that it has a value for.
            yield from _rows(f"{name}.{key}", each, (value or {}).get(key))
    else:
        yield f"`{name}`", "" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`", schema["description"]


def _table(rows: list[tuple[str, str, str]]) -> str:
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "| value | default | meaning |\n|---|---|---|\n" + "".join(f"| {line} |\n" for line in lines)


if __name__ == "__main__":
    REFERENCE.write_text(written(), encoding="utf-8")
