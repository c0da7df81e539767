"""The chart's reference says what its schema says, and that is what its values are."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.deploy.reference import CHART, REFERENCE, written


def test_the_reference_is_current() -> None:
    """Who changes the schema or a default runs `python -m tests.deploy.reference`."""
    assert REFERENCE.read_text(encoding="utf-8") == written()


def properties(schema: dict[str, Any], value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any], Any]]:
    for name, described in schema.get("properties", {}).items():
        found = value.get(name) if isinstance(value, dict) else None
        yield f"{path}{name}", described, found
        yield from properties(described, found, f"{path}{name}.")


def test_every_value_is_described_and_has_a_default() -> None:
    """What may be set is in values.yaml, where people look, and in the schema with a sentence of its own; but for what
    is Kubernetes's, a probe's timing and a container's resources, which have the defaults that Kubernetes gives."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    for path, described, value in properties(schema, values):
        if not re.search(r"(resources|Probe)\.", path):
            assert described["description"].endswith("."), path
            assert value is not None, path


def test_nothing_is_taken_that_is_not_described() -> None:
    """Every object of the chart's own refuses what it does not know, `global` aside, which is everybody's."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))

    def open_ones(described: dict[str, Any], path: str) -> Iterator[str]:
        if "properties" in described and described.get("additionalProperties") is not False:
            yield path
        for name, inner in described.get("properties", {}).items():
            yield from open_ones(inner, f"{path}.{name}")

    assert list(open_ones(schema, "")) == [".global"]
