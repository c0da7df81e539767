"""Describes operations as an OpenAPI 3.1 document: schemas are made of the models that read and write the bodies."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from runstream.broker.operations import JSON, OPEN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runstream.broker.operations import Answer, Body, Header, Operation

__all__ = ["described"]

OPENAPI: Final = "3.1.1"
REFERENCES: Final = "#/components/schemas/"
BEARER: Final = "bearer"
SCHEME: Final = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key or a token with the scope that is named, where authentication is on (`RUNSTREAM_AUTH`).",
}


def described(operations: Sequence[Operation], *, title: str, says: str) -> dict[str, Any]:
    """Describe operations: an OpenAPI document, ready to be encoded as JSON."""
    schemas = _Schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": OPENAPI,
        "info": {"title": title, "version": version("runstream"), "description": inspect.cleandoc(says)},
        "paths": paths,
        "components": {"schemas": schemas.of_bodies(operations), "securitySchemes": {BEARER: SCHEME}},
    }


class _Schemas:
    """The schema of every model that an operation names, and of those that they are made of."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        named = dict.fromkeys(shape for operation in operations for shape in _shapes_of(operation))
        models = [shape for shape in named if _is_model(shape)]
        others = [shape for shape in named if not _is_model(shape)]
        references, defined = models_json_schema(
            [(model, "validation") for model in models], ref_template=REFERENCES + "{model}"
        )
        schemas, components = msgspec.json.schema_components(others, ref_template=REFERENCES + "{name}")
        definitions = defined.get("$defs", {})
        if twice := definitions.keys() & components.keys():
            raise TypeError(f"Two models of the same name would be one schema: {', '.join(sorted(twice))}.")
        self.components: dict[str, Any] = definitions | components
        self._of = {model: references[model, "validation"] for model in models} | dict(
            zip(others, schemas, strict=True)
        )

    def of(self, body: Body) -> dict[str, Any]:
        """Give the schema of a body."""
        shapes = [self._of[shape] for shape in body.shapes]
        found = _any_of(shapes) if shapes else {"type": "string"}
        return {**found, "properties": dict(body.adds)} if body.adds else found

    def of_bodies(self, operations: Sequence[Operation]) -> dict[str, Any]:
        """Give every schema by its name, but for those of queries, whose fields are parameters."""
        shown = {shape for operation in operations for shape in _bodies_of(operation)}
        queries = {each.query.__name__ for each in operations if each.query is not None and each.query not in shown}
        return {name: schema for name, schema in sorted(self.components.items()) if name not in queries}

    def properties(self, model: type[BaseModel]) -> tuple[dict[str, Any], list[str]]:
        """Give the schemas of a model's fields, and the names of those that are required."""
        schema = self.components[model.__name__]
        return schema["properties"], schema.get("required", [])


def _is_model(shape: Any) -> bool:
    return isinstance(shape, type) and issubclass(shape, BaseModel)


def _bodies_of(operation: Operation) -> list[Any]:
    bodies = [*operation.bodies, *(body for answer in operation.answers.values() for body in answer.bodies)]
    return [shape for body in bodies for shape in body.shapes]


def _shapes_of(operation: Operation) -> list[Any]:
    return [*_bodies_of(operation), *([] if operation.query is None else [operation.query])]


def _operation(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.room],
        "summary": operation.says.partition(". ")[0].rstrip("."),
        "description": operation.says,
        "security": [] if operation.scope == OPEN else [{BEARER: [operation.scope]}],
        "parameters": [*_path_parameters(operation), *_query_parameters(operation, schemas), *_headers(operation)],
        "responses": dict(
            sorted(
                (str(status), _answer(answer, schemas, operation.always))
                for status, answer in operation.answers.items()
            )
        ),
    }
    if operation.bodies:
        found["requestBody"] = {
            "required": operation.is_body_required,
            "content": _content(operation.bodies, schemas),
        }
    if operation.is_deprecated:
        found["deprecated"] = True
    return found


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {
                "type": "string",
                "pattern": pattern.pattern,
                "minLength": pattern.min_length,
                "maxLength": pattern.max_length,
            },
        }
        for name, pattern in operation.parameters.items()
    ]


def _query_parameters(operation: Operation, schemas: _Schemas) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    properties, required = schemas.properties(operation.query)
    names = properties if operation.query_names is None else operation.query_names
    return [_query_parameter(name, properties[name], is_required=name in required) for name in names]


def _query_parameter(name: str, schema: Mapping[str, Any], *, is_required: bool) -> dict[str, Any]:
    said = {key: schema[key] for key in ("description", "deprecated") if key in schema}
    shape = {key: value for key, value in schema.items() if key not in {"title", *said}}
    # A query has no null: what may be null may be absent.
    values = [each for each in shape.get("anyOf", ()) if each != {"type": "null"}]
    if len(values) == 1:
        shape = {**{key: value for key, value in shape.items() if key not in {"anyOf", "default"}}, **values[0]}
    return {"name": name, "in": "query", "required": is_required, **said, "schema": shape}


def _headers(operation: Operation) -> list[dict[str, Any]]:
    return [{"name": header.name, "in": "header", "required": False, **_header(header)} for header in operation.headers]


def _header(header: Header) -> dict[str, Any]:
    return {"description": header.says, "schema": dict(header.shape)}


def _answer(answer: Answer, schemas: _Schemas, always: Sequence[Header]) -> dict[str, Any]:
    found: dict[str, Any] = {"description": answer.says}
    if headers := [*answer.headers, *always]:
        found["headers"] = {header.name: _header(header) for header in headers}
    if answer.bodies:
        found["content"] = _content(answer.bodies, schemas)
    return found


def _content(bodies: Sequence[Body], schemas: _Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for media in dict.fromkeys(body.media for body in bodies):
        schema = _any_of([schemas.of(body) for body in bodies if body.media == media])
        # 3.1 has no word for what an event or a line looks like; 3.2 calls it `itemSchema`.
        is_sequence = media != JSON and bool(schema.keys() - {"type"})
        content[media] = {"schema": {"type": "string"}, "x-itemSchema": schema} if is_sequence else {"schema": schema}
    return content


def _any_of(schemas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": [*schemas]}
