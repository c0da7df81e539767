"""What `/openapi.json` says: a valid document, with every operation, and nothing that is not there."""

import json
from typing import Any

import pytest
from openapi_spec_validator import validate

from runstream.broker.operations import Operation
from runstream.gateway.mounting import OPERATIONS
from tests.support.description import document


def test_it_is_valid() -> None:
    """It is OpenAPI, and says so."""
    assert document()["openapi"].startswith("3.1.")
    validate(document())


def test_it_has_every_operation() -> None:
    """Each with a name of its own, and words for people."""
    found = {(path, method): each for path, item in document()["paths"].items() for method, each in item.items()}
    assert set(found) == {(operation.path, operation.method.lower()) for operation in OPERATIONS}
    assert len({each["operationId"] for each in found.values()}) == len(found)
    for each in found.values():
        assert each["description"].endswith("."), each


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_its_operations_are_whole(operation: Operation) -> None:
    """A path's parameters are described, who takes a body says which, and everybody may fail."""
    found = document()["paths"][operation.path][operation.method.lower()]
    in_path = [each["name"] for each in found["parameters"] if each["in"] == "path"]
    assert in_path == [*operation.parameters]
    assert ("requestBody" in found) == bool(operation.bodies)
    assert {"400", "500"} <= set(found["responses"])


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_nothing_in_it_is_lost() -> None:
    """Whatever is referred to is there, and whatever is there is referred to."""
    there = {f"#/components/schemas/{name}" for name in document()["components"]["schemas"]}
    assert references(document()) == there
    assert json.loads(json.dumps(document())) == document()
