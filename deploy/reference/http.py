"""Writes docs/reference/http.md from the OpenAPI documents that the gateway and the broker serve."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prometheus_client import CollectorRegistry

from deploy.reference.tables import WRITTEN, table
from runstream.broker.auth.admissions import Admissions
from runstream.broker.auth.authenticator import Anybody
from runstream.broker.connection import Connection
from runstream.broker.http import description_operation, health_operations, metrics_operation
from runstream.broker.ingest.routes import ingest_operations
from runstream.broker.ingest.service import Ingest
from runstream.broker.jetstream import JetStream
from runstream.broker.metrics import BrokerMetrics
from runstream.broker.openapi import described
from runstream.broker.service import SAYS as OF_BROKER
from runstream.broker.settings import BrokerSettings
from runstream.gateway.app import says
from runstream.gateway.mounting import operations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from runstream.broker.operations import Operation

__all__ = ["documents", "page"]

PROTOCOL = Path(__file__).parents[2] / "PROTOCOL.md"

HEAD = f"""\
# HTTP

{WRITTEN}

What can be asked, parameter by parameter and status by status, as `GET /openapi.json` of each port describes it. What
it all means, the order of events, cursors, what is refused in which words, is in [PROTOCOL.md](../../PROTOCOL.md),
which alone is normative; each operation links to its section there. Where the answers differ from Letta's own server is
[in one table](../../PROTOCOL.md#differences-from-the-reference).

These work today, and no others. Every path below `/v1` is also below `/latest`. In front of a Letta platform everything
else is there, too: [it answers it](../guides/capture.md#a-letta-compatible-platform). The scope is needed where
[authentication is on](../operate/secure.md).

- [The gateway's port](#the-gateways-port): what clients use
- [The broker's port](#the-brokers-port): what writers over HTTP use
- [Shapes](#shapes): what bodies are made of
"""
WHICH = (
    (
        "a page, or an app, that shows an answer as it comes, and must not lose it",
        "`POST …/messages` with `streaming` and `background` true; come back with `POST /v1/runs/{run_id}/stream`",
    ),
    ("a browser without a library", "the same `POST`, then `EventSource` on `GET /v1/runs/{run_id}/stream`"),
    (
        "a program that wants the answer, and has a minute",
        "`POST /v1/agents/{agent_id}/messages`, with an `otid` in each message, so that it may be repeated",
    ),
    ("a dialogue", "`POST /v1/conversations/`, then its `…/messages`: one run at a time"),
    ("a reader that may not be lost, but cannot be changed", "`--background always`"),
    ("a platform that answers over HTTP", "[`--agent http://…`](../guides/capture.md); nothing changes there"),
    ("a platform in Python, whose own process runs the agents", "[`Runs`](../guides/library.md)"),
    ("a platform in any other language, the same", "[the ingest API](../guides/ingest.md)"),
)
OF_HEALTH = """\
This port answers `GET /livez`, `GET /readyz`, `GET /metrics` and `GET /openapi.json` as well. Beside what stands below
it, an operation may be answered:
"""
OF_MOST = """\
Every operation takes a header `user_id`, `user-<uuid4>`, as the reference has it: malformed it is 400, else ignored.
Beside what stands below it, an operation that is not open to everybody may be answered:
"""
MOST: Final = ("401", "403", "417", "429", "500")
"""Statuses that nearly every operation has alike."""
EVENTS: Final = "text/event-stream"
USER_ID: Final = "user_id"
REFERENCE: Final = "#/components/schemas/"
OF_OPERATORS: Final = {"/livez", "/readyz", "/metrics", "/openapi.json"}
TYPES: Final = {"integer": "whole number", "boolean": "true or false", "string": "text"}


class Served(NamedTuple):
    """An operation of a document."""

    name: str
    of: Mapping[str, Any]

    @property
    def scope(self) -> str:
        """Name the scope that it needs."""
        return next((f"`{scope}`" for each in self.of["security"] for scope in each["bearer"]), "open to everybody")


def documents() -> tuple[dict[str, Any], dict[str, Any]]:
    """Make the documents of both ports, as they are served: the gateway's without a platform behind it."""
    settings = BrokerSettings()
    jetstream = JetStream(Connection(settings.nats_url, name="reference"), timeout_seconds=1)
    ingest = ingest_operations(Ingest(jetstream, settings, BrokerMetrics()), Admissions(Anybody(), None))
    return (
        _document(operations(before_platform=False), title="runstream", text=says(before_platform=False)),
        _document(ingest, title="runstream broker", text=OF_BROKER),
    )


def _document(served: Sequence[Operation], *, title: str, text: str) -> dict[str, Any]:
    async def unready() -> str | None:
        return None

    whole = [*served, *health_operations(unready), metrics_operation(CollectorRegistry())]
    return described([*whole, description_operation(whole, title=title, says=text)], title=title, says=text)


def page() -> str:
    """Say all that is described."""
    gateway, broker = documents()
    of_gateway = list(_served(gateway))
    of_broker = [each for each in _served(broker) if each.name.partition(" ")[2] not in OF_OPERATORS]
    shapes = {**gateway["components"]["schemas"], **broker["components"]["schemas"]}
    return "\n".join(
        [
            HEAD,
            "## Which one, and how\n",
            table(("you have", "then"), WHICH),
            *_port("The gateway's port", OF_MOST, of_gateway),
            *_port("The broker's port", OF_HEALTH, of_broker),
            "## Shapes\n",
            "### Messages\n\nEach event of a stream has one of these in its `data`, until `[DONE]`.\n",
            f"{_shape(_events(of_gateway))}\n",
            *(_shape_section(name, shapes[name]) for name in sorted(shapes)),
        ]
    )


def _port(title: str, text: str, served: Sequence[Served]) -> Iterator[str]:
    """Say what a port answers: all of it, what most operations have alike, and each."""
    most = _most(served)
    yield f"## {title}\n"
    yield _summary(served)
    yield text
    yield _answers(most)
    for each in served:
        yield _section(each, most)


def _most(served: Sequence[Served]) -> dict[str, Any]:
    """Find what most operations answer with the statuses that nearly all of them have."""
    found = {}
    for status in MOST:
        answers = [each.of["responses"][status] for each in served if status in each.of["responses"]]
        found[status] = max(answers, key=answers.count)
    return found


def _events(served: Sequence[Served]) -> Mapping[str, Any]:
    """Give the shape of what is streamed, which is the same wherever something is."""
    answers = [answer for each in served for answer in each.of["responses"].values()]
    return next(_content(answer["content"][EVENTS]) for answer in answers if EVENTS in answer.get("content", {}))


def _served(document: Mapping[str, Any]) -> Iterator[Served]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield Served(f"{method.upper()} {path}", operation)


def _summary(served: Sequence[Served]) -> str:
    rows = [(f"[`{each.name}`](#{_anchor(f'`{each.name}`')})", each.of["summary"], each.scope) for each in served]
    return table(("operation", "what it does", "scope"), rows)


def _anchor(heading: str) -> str:
    """Make a heading's anchor, as GitHub does."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _protocol_anchors() -> dict[str, str]:
    """Find the section of PROTOCOL.md for each operation that has one."""
    headings = re.findall(r"^### (`.*)$", PROTOCOL.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: _anchor(heading) for heading in headings for name in re.findall(r"`([^`]+)`", heading)}


def _section(served: Served, most: Mapping[str, Any]) -> str:
    deprecated = " **Deprecated.**" if served.of.get("deprecated") else ""
    normative = f"[PROTOCOL.md](../../PROTOCOL.md#{_protocol_anchors()[served.name]})"
    parts = [
        f"### `{served.name}`\n",
        f"{served.of['description'].rstrip('.')}.{deprecated} {normative} · scope: {served.scope}\n",
        _parameters([each for each in served.of["parameters"] if each["name"] != USER_ID]),
        _body(served.of.get("requestBody")),
        _answers({status: of for status, of in served.of["responses"].items() if most.get(status) != of}),
    ]
    return "\n".join(part for part in parts if part)


def _parameters(parameters: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            f"`{each['name']}`",
            each["in"],
            _shape(each["schema"]),
            "required" if each["required"] else _default(each["schema"]),
            each.get("description", "") + (" Deprecated." if each.get("deprecated") else ""),
        )
        for each in parameters
    ]
    return table(("parameter", "in", "type", "default", "meaning"), rows)


def _body(body: Mapping[str, Any] | None) -> str:
    if body is None:
        return ""
    need = "required" if body["required"] else "may be absent"
    rows = [(f"`{media}`", _shape(_content(of)), need) for media, of in body["content"].items()]
    return table(("body", "shape", ""), rows)


def _content(of: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the shape of a body; of a sequence that of its items."""
    found: Mapping[str, Any] = of.get("x-itemSchema", of["schema"])
    return found


def _answers(answers: Mapping[str, Any]) -> str:
    rows = []
    for status, answer in answers.items():
        bodies = [
            f"`{media}`: {'[messages](#messages)' if media == EVENTS else _shape(_content(of))}"
            for media, of in answer.get("content", {}).items()
        ]
        headers = [f"`{name}`" for name in answer.get("headers", {})]
        rows.append((status, answer["description"], "; ".join(bodies), ", ".join(headers)))
    return table(("status", "when", "body", "headers"), rows)


def _shape(schema: Mapping[str, Any]) -> str:
    """Say in words what a JSON schema allows, as far as one line goes."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(REFERENCE)
        return f"[{name}](#{_anchor(name)})"
    if several := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(dict.fromkeys(_shape(each) for each in several))
    if "enum" in schema:
        return " or ".join(f"`{choice}`" for choice in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kinds = schema.get("type", [])
    return " or ".join(_of_type(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds)) or "anything"


def _of_type(kind: str, schema: Mapping[str, Any]) -> str:
    match kind:
        case "array":
            most = f", at most {schema['maxItems']}" if "maxItems" in schema else ""
            return f"list of {_shape(schema.get('items', {}))}{most}"
        case "object" if isinstance(schema.get("additionalProperties"), dict) and schema["additionalProperties"]:
            return f"object, its values {_shape(schema['additionalProperties'])}"
        case "string" if "maxLength" in schema and "pattern" not in schema:
            return f"text, at most {schema['maxLength']} characters"
        case "integer" | "number":
            return TYPES.get(kind, kind) + _range(schema)
    return TYPES.get(kind, kind)


def _range(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    return "".join([f", from {low}" if low is not None else "", f", to {high}" if high is not None else ""])


def _default(schema: Mapping[str, Any]) -> str:
    if "default" not in schema:
        return ""
    match schema["default"]:
        case bool() as flag:
            return f"`{str(flag).lower()}`"
        case None:
            return "null"
        case value:
            return f"`{value}`"


def _shape_section(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        (
            f"`{field}`",
            _shape(of),
            "required" if field in required else _default(of),
            of.get("description", ""),
        )
        for field, of in schema.get("properties", {}).items()
    ]
    text = " ".join(schema.get("description", "").split())
    shape = "" if rows or schema.get("type") == "object" else f"{_shape(schema)}\n"
    parts = [f"### {name}\n", f"{text}\n" if text else "", shape, table(("field", "type", "default", "meaning"), rows)]
    return "\n".join(part for part in parts if part)
