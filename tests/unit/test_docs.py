"""The documents say what the source does: paths, settings, refusals, knobs and links."""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from prometheus_client import CollectorRegistry
from pydantic_settings import BaseSettings

from deploy.reference.settings import PARTS
from runstream.broker.agents import demo
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.auth.admissions import Admissions
from runstream.broker.auth.authenticator import Anybody
from runstream.broker.auth.settings import AuthSettings
from runstream.broker.connection import Connection
from runstream.broker.embedded import MAX_PAYLOAD_BYTES
from runstream.broker.http import description_operation, health_operations, metrics_operation
from runstream.broker.http_server import LONG_HEAD, NO_HTTP
from runstream.broker.ingest.errors import STATUSES
from runstream.broker.ingest.routes import ingest_operations
from runstream.broker.ingest.service import Ingest
from runstream.broker.jetstream import JetStream
from runstream.broker.keys import REVOKED
from runstream.broker.limits.limiter import TOLD
from runstream.broker.limits.settings import LimitSettings
from runstream.broker.metrics import BROKER_METRICS, BrokerMetrics
from runstream.broker.operations import Operation
from runstream.broker.settings import BrokerSettings, resolved
from runstream.broker.topology import WORK_STREAM
from runstream.gateway import cli
from runstream.gateway.commands.settings import KEY
from runstream.gateway.metrics import GATEWAY_METRICS
from runstream.gateway.mounting import OPERATIONS, operations
from runstream.gateway.settings import BrokerServiceSettings, GatewayServiceSettings, GatewaySettings, UpSettings
from runstream.gateway.workers_metrics import WORKERS_METRICS
from runstream.schemas import ERROR_TYPES, Kind
from tests.load.bounds import follower_bytes, slow_follower_bytes, tail_bytes, upload_bytes
from tests.support.documents import documents

ROOT = Path(__file__).parents[2]
GATEWAY = ROOT / "gateway" / "runstream" / "gateway"
PROTOCOL = (ROOT / "PROTOCOL.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
LETTA_CLIENT = (ROOT / "docs" / "guides" / "letta-client.md").read_text(encoding="utf-8")
BOUNDS = (ROOT / "docs" / "bounds.md").read_text(encoding="utf-8")
DEMO_AGENT = (ROOT / "docs" / "demo-agent.md").read_text(encoding="utf-8")
DOCUMENTS = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(ROOT).parts)
]
HTTP_BODY = ROOT / "broker" / "runstream" / "broker" / "http_body.py"
REFUSERS = sorted([*GATEWAY.glob("*.py"), *(GATEWAY / "routes").glob("*.py"), HTTP_BODY])


def table(document: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head, cell by cell."""
    below = re.split(rf"^#+ {re.escape(heading)}$", document, flags=re.MULTILINE)[1]
    lines = re.search(r"(?:^\|.*\n)+", below, flags=re.MULTILINE)
    assert lines is not None, f"no table below {heading}"
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[0].splitlines()[2:]]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# -- paths ------------------------------------------------------------------------------------------------------------


def endpoints(operations: Sequence[Operation]) -> set[str]:
    return {f"{operation.method} {operation.path}" for operation in operations}


def gateway_endpoints() -> set[str]:
    return endpoints(OPERATIONS)


def health_endpoints() -> set[str]:
    async def unready() -> str | None:
        return None

    operations = [*health_operations(unready), metrics_operation(CollectorRegistry())]
    return endpoints([*operations, description_operation(operations, title="", says="")])


def ingest_endpoints() -> set[str]:
    return endpoints(served()) - gateway_endpoints()


def test_protocol_has_every_path() -> None:
    """Whoever serves a path says in PROTOCOL.md what it takes and answers."""
    headings = {name for line in re.findall(r"^### (.*)$", PROTOCOL, flags=re.MULTILINE) for name in code(line)}
    assert headings == gateway_endpoints() | health_endpoints() | ingest_endpoints()


def served() -> list[Operation]:
    """What both ports answer, but for what operators ask. Nothing is asked of NATS until a request is."""
    settings = BrokerSettings()
    jetstream = JetStream(Connection(settings.nats_url, name="test"), timeout_seconds=1)
    gateways = {each.name: each for each in (*OPERATIONS, *operations(before_platform=True))}
    return [
        *gateways.values(),
        *ingest_operations(Ingest(jetstream, settings, BrokerMetrics()), Admissions(Anybody(), None)),
    ]


@pytest.mark.parametrize("operation", served(), ids=lambda operation: operation.name)
def test_protocol_has_every_status(operation: Operation) -> None:
    """Below each path stands what it answers, but for 401, 403, 429 and 500, which are everywhere, and a platform's."""
    section = re.split(
        rf"^### .*`{re.escape(operation.method)} {re.escape(operation.path)}`.*$", PROTOCOL, flags=re.MULTILINE
    )[1]
    section = re.split(r"^##", section, flags=re.MULTILINE)[0]
    answers = re.findall(r"Answers? \d{3}.*?(?=\n\n|\Z)", section, flags=re.DOTALL)
    assert answers, "nothing is said of what it answers"
    said = {int(status) for status in re.findall(r"\b([2-5]\d\d)\b", " ".join(answers))}
    everywhere = {401, 403, 429, 500}
    described = {status for status in operation.answers if isinstance(status, int)}
    assert said - everywhere == described - everywhere


# -- settings ---------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """A setting as the source has it."""

    name: str
    default: Any
    kind: type[BaseSettings] | None = None

    def reads(self, text: str) -> Any:
        """What the source makes of a default as it is written in the documents."""
        if text == "unset":
            return None
        if self.kind is None:
            return text
        value = json.loads(text) if isinstance(self.default, dict) else text
        return getattr(resolved(self.kind, {self.name: value}), self.name)


COMMANDS = ("gateway", "broker", "provision", "up")
NO_SETTINGS = {"help", "plan", "apply", "as_json", "rebuild_index"}
"""Options that say what is to be done now: no variable has them."""


def options() -> list[Any]:
    """The options of all commands, as their parsers have them, but for what no person says."""
    group: Any = typer.main.get_command(cli.app)
    return [option for name in COMMANDS for option in group.get_command(None, name).params if not option.hidden]


def client_variables() -> set[str]:
    """The variables that commands of clients read: those of their options, and the key, which has none."""
    group: Any = typer.main.get_command(cli.app)
    parsers = [group.get_command(None, name) for name in cli.COMMANDS]
    variables = {option.envvar for parser in parsers for option in parser.params if isinstance(option.envvar, str)}
    return variables | {KEY}


def settings() -> dict[str, Setting]:
    """Every setting by the name of its variable; of those of one name that of `up` is the one in the table."""
    found = {
        f"{kind.model_config['env_prefix']}{name.upper()}": Setting(name, field.default, kind)
        for kind in (
            BrokerSettings,
            UpstreamSettings,
            GatewaySettings,
            BrokerServiceSettings,
            GatewayServiceSettings,
            UpSettings,
            AuthSettings,
            LimitSettings,
        )
        for name, field in kind.model_fields.items()
    }
    return found | {
        option.envvar: Setting(option.name, option.default) for option in options() if isinstance(option.envvar, str)
    }


NAMED = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("PROTOCOL.md", "SECURITY.md", *documents()))


@pytest.mark.parametrize("name", sorted(set(re.findall(r"RUNSTREAM_[A-Z_]+[A-Z]", NAMED))))
def test_settings_that_are_named_exist(name: str) -> None:
    """Nobody sets what nobody reads."""
    assert name in settings() or name in client_variables() or name in {WORK_STREAM, REVOKED}


DECLARED = {
    name for metric in (*GATEWAY_METRICS, *WORKERS_METRICS, *BROKER_METRICS) for name in (metric.name, metric.shown_as)
}
COOKIES = {"runstream_token", "runstream_session"}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\brunstream_[a-z_]+[a-z]", NAMED)) - COOKIES))
def test_metrics_that_are_named_exist(name: str) -> None:
    """Nobody asks for a series that nobody has."""
    assert re.sub(r"_(count|sum|bucket)$", "", name) in DECLARED


def test_bounds_are_those_of_the_default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page says a stream, a run and an upload may take is what the tests under load hold them to."""
    for name in settings():
        monkeypatch.delenv(name, raising=False)
    gateway, broker = GatewaySettings(), BrokerSettings()
    said = {row[0]: row[2] for heading in ("A gateway", "A broker") for row in table(BOUNDS, heading)}
    at_worst = {
        "a stream whose reader takes nothing": follower_bytes(gateway, broker, MAX_PAYLOAD_BYTES),
        "a stream whose reader takes too little": slow_follower_bytes(gateway, broker, MAX_PAYLOAD_BYTES),
        "a run that somebody follows": tail_bytes(gateway, MAX_PAYLOAD_BYTES),
        "an open upload": upload_bytes(broker, MAX_PAYLOAD_BYTES),
        "what was read for streams that were behind": gateway.replay_cache_bytes,
        "whole answers": gateway.held_answer_bytes,
        "a whole answer that is being made": gateway.max_answer_bytes,
        "lists": 2 * gateway.view_bytes,
        "another ingest request": 2 * broker.ingest_body_bytes,
        "a run that it executes": broker.writer_queue_bytes,
    }
    assert said == {what: f"{size / 2**20:g} MiB" for what, size in at_worst.items()}


@pytest.mark.parametrize(
    ("title", "kind"), [(title, kind) for title, _, kind in PARTS], ids=lambda part: str(part)[:24]
)
def test_the_page_of_settings_shows_the_defaults(
    title: str, kind: type[BaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every setting is there; its default is what the source makes of it, in whatever unit it is written."""
    for name in settings():
        monkeypatch.delenv(name, raising=False)
    rows = table(SETTINGS, title)
    assert len(rows) == len(kind.model_fields)
    for (name, field), (variable, _, default, *_) in zip(kind.model_fields.items(), rows, strict=True):
        assert code(variable) == [f"{kind.model_config['env_prefix']}{name.upper()}"]
        shown = default if default == "unset" else code(default)[0]
        assert Setting(name, field.default, kind).reads(shown) == field.default, variable


def test_the_page_of_settings_has_every_flag() -> None:
    """All flags of all commands that serve, each beside its variable."""
    listed = {
        (flag, code(row[0])[0])
        for title in [*(title for title, _, _ in PARTS), "Of commands"]
        for row in table(SETTINGS, title)
        for flag in code(row[1])
        if flag.startswith("-")
    }
    expected = {
        (flag, option.envvar or f"RUNSTREAM_{option.name.upper()}")
        for option in options()
        if option.name not in NO_SETTINGS
        for flag in [*option.opts, *option.secondary_opts]
    }
    assert expected <= listed


# -- refusals ---------------------------------------------------------------------------------------------------------


def is_refusal(name: str) -> bool:
    """Whether a class of this name is of the tree of gateway/errors.py, or of broker/http_body.py, which it quotes."""
    return name in REFUSALS


def classes() -> Iterator[ast.ClassDef]:
    for path in REFUSERS:
        yield from (
            node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)
        )


def refusals() -> set[str]:
    found = {"ApiError", "BadBody"}
    for _ in range(4):  # deeper than the tree is
        found |= {
            node.name for node in classes() for base in node.bases if isinstance(base, ast.Name) and base.id in found
        }
    return found


REFUSALS = refusals()


def parts(node: ast.expr, constants: dict[str, str]) -> list[str]:
    """The literal parts of a text, in order; none for what is computed elsewhere."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=values):
            return [part.value for part in values if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        case ast.Name(id=name) if name in constants:
            return [constants[name]]
    return []


def details(path: Path) -> Iterator[list[str]]:
    """What a file of the gateway tells a client: the first arguments of refusals, and what is named `detail`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[first, *_]) if is_refusal(name):
                yield parts(first, constants)
            case ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name(id="super"))), args=[first, *_]):
                yield parts(first, constants)
            case ast.Assign(targets=[ast.Name(id="detail")], value=value):
                yield parts(value, constants)


DETAILS = {"{}".join(text): path.name for path in REFUSERS for text in details(path) if any(text)}


def test_details_are_found() -> None:
    """The test below would pass on nothing."""
    expected = {"errors.py", "lookup.py", "seats.py", "start.py", "creating.py", "http_body.py"}
    assert expected <= set(DETAILS.values())
    assert "No active runs found for this conversation." in DETAILS


@pytest.mark.parametrize("text", sorted(DETAILS))
def test_protocol_has_every_detail(text: str) -> None:
    """A client's author finds each refusal in PROTOCOL.md, word for word."""
    literal = [re.escape(part) for part in text.split("{}")]
    assert re.search(r"[^|]{0,60}?".join(literal), PROTOCOL), DETAILS[text]


@pytest.mark.parametrize("limit", [limit for limit in TOLD if "ingest" not in limit])
def test_protocol_has_what_is_said_at_a_limit(limit: str) -> None:
    """Word for word, as all that a gateway says; what a broker says has its type."""
    assert f"| 429 | `{TOLD[limit]}` |" in PROTOCOL


def test_protocol_has_what_is_said_to_what_is_no_http() -> None:
    """Word for word: it is said on both ports."""
    assert all(f"`{text}`" in PROTOCOL for text in (NO_HTTP, LONG_HEAD))


def test_protocol_has_every_kind_and_error_type() -> None:
    """The words of the wire are all explained."""
    kinds = [name for row in table(PROTOCOL, "Events") for name in code(row[0])]
    assert sorted(kinds) == sorted(kind.value for kind in Kind)
    types = [name for row in table(PROTOCOL, "Error types") for name in code(row[0])]
    assert sorted(types) == sorted(ERROR_TYPES)


def test_the_guide_says_what_to_do_after_every_cut() -> None:
    """Each word that a gateway says before it cuts a response has its line in the table of what a client meets."""
    said = {word for path in REFUSERS for word in re.findall(r'cut_error\([\w.]+, "(\w+)"\)', path.read_text())}
    assert "store_unavailable" in said
    explained = {word for row in table(LETTA_CLIENT, "What a client meets when a stream ends") for word in code(row[0])}
    assert said <= explained, said - explained


def test_protocol_has_every_error_type_of_the_ingest_api() -> None:
    """In the one table of the source, with its status."""
    listed = {code(row[0])[0]: int(row[1]) for row in table(PROTOCOL, "Ingest errors")}
    assert listed == {name: status.value for name, status in STATUSES.items()}


# -- the demo agent ---------------------------------------------------------------------------------------------------


def test_demo_agent_has_the_knobs_it_is_said_to_have() -> None:
    """The table has every knob of the demo agent in its order, with its default."""
    defaults: dict[str, Any] = {name: field.default for name, field in demo._Knobs.__dataclass_fields__.items()}
    shown = {code(row[0])[0]: row[2] for row in table(DEMO_AGENT, "The demo agent")}
    assert list(shown) == list(demo._ALLOWED) == list(defaults)
    written: dict[Any, str] = {None: "unset", True: "`true`", False: "`false`", demo.DEFAULT_TEXT: "a sentence"}
    for name, default in defaults.items():
        expected = f"`{default}`" if type(default) is int else written.get(default, f"`{default}`")
        assert shown[name] == expected, name


# -- links ------------------------------------------------------------------------------------------------------------


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(document: Path) -> None:
    """Every file and heading that a document links to is there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (document.parent / path).resolve() if path else document
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), target


def test_every_decision_is_listed() -> None:
    """The list of decision records has all of them, in order, and no other."""
    records = ROOT / "docs" / "adr"
    listed = re.findall(
        r"^\| \[\d+\]\((\S+)\) ", (records / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert listed == sorted(path.name for path in records.glob("[0-9]*.md"))
