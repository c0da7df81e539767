"""Holds every answer of a gateway's against its `/openapi.json`: an unknown status, or another shape, fails."""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator

from runstream.broker.openapi import described
from runstream.gateway.errors import refusals
from runstream.gateway.mounting import OPERATIONS, is_ours, operations
from runstream.gateway.passthrough import NOT_PASSED_ON

UNDESCRIBED = {307, 404, 405, 431}
"""What paths and methods are answered that are not there, and a head that is too long, whatever it asks for."""
PASSED_ON = frozenset(refusals(*NOT_PASSED_ON))
"""What is answered in place of a platform, in front of one."""


class Described(NamedTuple):
    """An operation of the document."""

    name: str
    answers: Mapping[str, Any]
    passed_on: frozenset[int | str]
    """What it may be answered in addition where it is a platform's."""


@functools.cache
def document() -> dict[str, Any]:
    """What a gateway says of itself, in front of a platform, and of what is the platform's then without one."""
    platforms = [each for each in OPERATIONS if not is_ours(each.method, each.path.rstrip("/"))]
    return described([*operations(before_platform=True), *platforms], title="runstream", says="")


@functools.cache
def _paths() -> list[tuple[re.Pattern[str], Mapping[str, Any]]]:
    # A path without parameters before one that has some, as it is routed.
    templates = sorted(document()["paths"].items(), key=lambda item: item[0].count("{"))
    return [(re.compile(re.sub(r"\{\w+\}", "[^/]+", template)), item) for template, item in templates]


@functools.cache
def _validator(operation: str, status: str) -> Draft202012Validator:
    content = _operations()[operation]["responses"][status]["content"]["application/json"]
    return Draft202012Validator({**content["schema"], "components": document()["components"]})


@functools.cache
def _operations() -> dict[str, Any]:
    return {each["operationId"]: each for item in document()["paths"].values() for each in item.values()}


def operation_of(method: str, target: str) -> Described | None:
    """The operation that a request is for; None if there is none."""
    path = re.sub(r"^/latest(/v1)?/", "/v1/", urlsplit(target).path)
    for template, item in _paths():
        if template.fullmatch(path):
            found = item.get(method.lower())
            if found is None:
                return None
            passed_on = frozenset() if is_ours(method, path.rstrip("/")) else PASSED_ON
            return Described(found["operationId"], found["responses"], passed_on)
    return None


def check_status(method: str, target: str, status: int) -> None:
    """The status is one that the document has."""
    operation = operation_of(method, target)
    if operation is not None and status not in UNDESCRIBED | operation.passed_on:
        there = {str(status), f"{status // 100}XX"} & operation.answers.keys()
        assert there, f"{operation.name} answers {status}, and nobody was told"


def check_body(method: str, target: str, status: int, body: Any) -> None:
    """The body is as the document describes it."""
    operation = operation_of(method, target)
    if operation is None or str(status) not in operation.answers:
        return
    wrong = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
        for error in _validator(operation.name, str(status)).iter_errors(body)
    ]
    assert not wrong, f"{operation.name}, {status}: {wrong}"
