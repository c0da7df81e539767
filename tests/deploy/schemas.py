"""Whether an object is one that Kubernetes, or the operator it is meant for, would take: strictly, by their schemas."""

import functools
import importlib
import importlib.resources
import json
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

KUBERNETES = [f"1.{minor}" for minor in range(30, 38)]

_MODELS = {
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
}


def complaints(each: dict[str, Any], version: str) -> Iterator[str]:
    """What is wrong with an object, for a version of Kubernetes. A kind that nobody knows is wrong, too."""
    validator = _validator(each["apiVersion"], each["kind"], version)
    for error in validator.iter_errors(each):
        yield f"{each['kind']} {each['metadata']['name']}, {error.json_path}: {error.message}"


def _validator(api: str, kind: str, version: str) -> Draft202012Validator:
    if api in _MODELS:
        return _custom(api, kind)
    if api == "gateway.networking.k8s.io/v1":
        return _route()
    return _builtin(api, kind, version)


@functools.cache
def _builtin(api: str, kind: str, version: str) -> Draft202012Validator:
    group, _, rest = api.rpartition("/")
    short = f"{group.partition('.')[0]}-{rest}" if group else rest
    schema = Resource.from_contents(_stored(version, f"{kind.lower()}-{short}"))
    registry: Registry[Any] = schema @ (_definitions(version) @ Registry())
    return Draft202012Validator(schema.contents, registry=registry)


@functools.cache
def _definitions(version: str) -> Any:
    return Resource.from_contents(_stored(version, "_definitions"))


def _stored(version: str, name: str) -> Any:
    folder = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema"
    (found,) = (each for each in folder.iterdir() if each.name.startswith(f"v{version}.") and "strict" in each.name)
    return json.loads((found / f"{name}.json").read_text(encoding="utf-8"))


@functools.cache
def _custom(api: str, kind: str) -> Draft202012Validator:
    """Of the operators' models, which by themselves take keys that they do not know."""
    schema = getattr(importlib.import_module(_MODELS[api]), kind).model_json_schema(by_alias=True)
    for model in [schema, *schema.get("$defs", {}).values()]:
        if "properties" in model and "additionalProperties" not in model:
            model["additionalProperties"] = False
    return Draft202012Validator(schema)


@functools.cache
def _route() -> Draft202012Validator:
    """What the chart uses of an HTTPRoute, written down from the Gateway API's specification: no package has it."""
    string = {"type": "string", "minLength": 1}
    duration = {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
    path = _object(type={"enum": ["Exact", "PathPrefix", "RegularExpression"]}, value=string)
    backend = _object(name=string, port={"type": "integer", "minimum": 1, "maximum": 65535})
    rule = _object(
        matches=_list(_object(path=path)),
        backendRefs=_list(backend),
        timeouts=_object(request=duration, backendRequest=duration),
    )
    parent = _object(name=string, namespace=string, sectionName=string, group=string, kind=string, port=backend)
    spec = _object(parentRefs=_list(parent), hostnames=_list(string), rules=_list(rule))
    return Draft202012Validator(_object(apiVersion=string, kind=string, metadata={"type": "object"}, spec=spec))


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "maxItems": 16, "items": items}
