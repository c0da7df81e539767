"""What `/openapi.json` says, on either port: a valid document, with every operation, and nothing that is not there."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from openapi_spec_validator import validate

from runstream.broker.auth.admissions import Admissions
from runstream.broker.auth.authenticator import Anybody
from runstream.broker.connection import Connection
from runstream.broker.ingest.routes import ingest_operations
from runstream.broker.ingest.service import Ingest
from runstream.broker.jetstream import JetStream
from runstream.broker.metrics import BrokerMetrics
from runstream.broker.openapi import described
from runstream.broker.operations import Operation
from runstream.broker.settings import BrokerSettings
from runstream.gateway.app import says
from runstream.gateway.mounting import OPERATIONS, operations


class Port(NamedTuple):
    """What a port serves, and what it says of it."""

    operations: Sequence[Operation]
    document: dict[str, Any]


def ingest() -> list[Operation]:
    """The ingest API of a broker that has nobody to ask: nothing is asked of NATS until a request is."""
    settings = BrokerSettings()
    jetstream = JetStream(Connection(settings.nats_url, name="test"), timeout_seconds=1)
    return ingest_operations(Ingest(jetstream, settings, BrokerMetrics()), Admissions(Anybody(), None))


PORTS = {
    name: Port(served, described(served, title=name, says=""))
    for name, served in {
        "gateway": OPERATIONS,
        "before a platform": operations(before_platform=True),
        "broker": ingest(),
    }.items()
}
EACH = [(port, operation) for port in PORTS for operation in PORTS[port].operations]


@pytest.fixture(params=PORTS)
def port(request: pytest.FixtureRequest) -> Port:
    """Each port in turn."""
    return PORTS[request.param]


def test_it_is_valid(port: Port) -> None:
    """It is OpenAPI, and says so."""
    assert port.document["openapi"].startswith("3.1.")
    validate(port.document)


def test_it_has_every_operation(port: Port) -> None:
    """Each with a name of its own, and words for people."""
    paths = port.document["paths"]
    found = {(path, method): each for path, item in paths.items() for method, each in item.items()}
    assert set(found) == {(operation.path, operation.method.lower()) for operation in port.operations}
    assert len({each["operationId"] for each in found.values()}) == len(found)
    for each in found.values():
        assert each["description"][0].isupper(), each
        assert each["summary"], each


@pytest.mark.parametrize(("name", "operation"), EACH, ids=lambda value: value if isinstance(value, str) else value.name)
def test_its_operations_are_whole(name: str, operation: Operation) -> None:
    """A path's parameters are described, who takes a body says which, and everybody may fail."""
    found = PORTS[name].document["paths"][operation.path][operation.method.lower()]
    in_path = [each["name"] for each in found["parameters"] if each["in"] == "path"]
    assert in_path == [*operation.parameters]
    assert ("requestBody" in found) == bool(operation.bodies)
    assert "500" in found["responses"]


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_nothing_in_it_is_lost(port: Port) -> None:
    """Whatever is referred to is there, and whatever is there is referred to."""
    there = {f"#/components/schemas/{name}" for name in port.document["components"]["schemas"]}
    assert references(port.document) == there
    assert json.loads(json.dumps(port.document)) == port.document


def refused_by_platforms(port: Port) -> set[str]:
    """The operations of a port that may have to ask a platform first."""
    return {
        f"{method} {path}"
        for path, item in port.document["paths"].items()
        for method, each in item.items()
        if {"4XX", "502"} & each["responses"].keys()
    }


def test_where_there_is_no_platform_none_refuses() -> None:
    """Nobody is told of answers that cannot come."""
    assert refused_by_platforms(PORTS["gateway"]) == set()
    assert "platform" not in says(before_platform=False)


def test_in_front_of_a_platform_it_says_what_is_passed_on() -> None:
    """What may ask the platform says how that may fail, and all that is refused in its place is listed."""
    asking = {f"post /v1/conversations/{{conversation_id}}/{what}" for what in ("messages", "cancel")}
    assert refused_by_platforms(PORTS["before a platform"]) == asking
    assert "/v1/conversations/{conversation_id}" not in PORTS["before a platform"].document["paths"]
    said = says(before_platform=True)
    assert "passed on" in said
    for status in (400, 408, 501, 502, 503, 504, 508):
        assert f"\n- {status}: " in said
