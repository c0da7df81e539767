"""Writes docs/reference/settings.md: each setting with its flag, its default, what it may be, and its docstring."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin

import typer
from pydantic_settings import BaseSettings

from deploy.reference.tables import WRITTEN, table
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.auth.settings import AuthSettings
from runstream.broker.limits.settings import LimitSettings
from runstream.broker.settings import BrokerSettings
from runstream.gateway import cli
from runstream.gateway.settings import BrokerServiceSettings, GatewayServiceSettings, GatewaySettings, UpSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo

__all__ = ["PARTS", "page"]

HEAD = f"""\
# Settings

{WRITTEN}

A flag wins over the environment, the environment over the default. Durations are written as `24h`, `90s`, `250ms` or
a number of seconds. A variable that is empty is as if it were not there: `RUNSTREAM_AUTH=` asks nobody. One that no
service reads is a warning, `setting_unknown`, with the name that was probably meant.

A flag is that of the commands beside it. `runstream up` has all other settings from the environment; so has a process
with [`Runs`](../guides/library.md). Settings that are written into NATS's streams change there by [`runstream
provision`](../operate/deploy.md#separate-services) alone. What they come to in memory, at worst, is in
[docs/bounds.md](../bounds.md).
"""

OF_ALL = """\
What brokers, gateways, `runstream provision` and `Runs` share. All of them should be told the same; `runstream up` has
its own `RUNSTREAM_NATS_URL`, above. How NATS is to know a process: [secure](../operate/secure.md#nats).
"""
PARTS: tuple[tuple[str, str, type[BaseSettings]], ...] = (
    ("Of `runstream up`", "", UpSettings),
    ("Of `runstream gateway`", "", GatewayServiceSettings),
    ("Of `runstream broker`", "", BrokerServiceSettings),
    ("Of all parts", OF_ALL, BrokerSettings),
    ("Of gateways", "", GatewaySettings),
    ("Of the platform behind", "See [capture](../guides/capture.md).\n", UpstreamSettings),
    ("Of who asks", "Of gateways, and of brokers for ingest: see [secure](../operate/secure.md).\n", AuthSettings),
    (
        "Of limits",
        "Each process counts by itself ([what counts](../../PROTOCOL.md#limits)); 0 is no limit.\n",
        LimitSettings,
    ),
)
OF_COMMANDS = """\
What is logged, of the commands that serve or work on NATS; and what commands of clients read. Those have their key from
`RUNSTREAM_KEY`, for which there is no flag ([docs/cli.md](../cli.md)).
"""
SERVING: Mapping[str, type[BaseSettings]] = {
    "up": UpSettings,
    "gateway": GatewayServiceSettings,
    "broker": BrokerServiceSettings,
}
COMMANDS = (*SERVING, "provision", "doctor")
UNITS = ((3600, "h"), (60, "m"), (1, "s"))
KIBIBYTE, MEBIBYTE = 2**10, 2**20


class Declared(NamedTuple):
    """What stands in the source beside a field."""

    annotation: str
    says: str


def page() -> str:
    """Say all that is declared."""
    parts = [f"## {title}\n\n{says}{chr(10) if says else ''}{_table(kind)}" for title, says, kind in PARTS]
    return "\n".join([HEAD, *parts, f"## Of commands\n\n{OF_COMMANDS}\n{_of_commands()}"])


def _table(kind: type[BaseSettings]) -> str:
    declared = _declared(kind)
    rows = [
        (
            f"`{_variable(kind, name)}`",
            _flags(kind, _variable(kind, name)),
            _default(name, declared[name].annotation, field.default),
            _allowed(field),
            _by_variables(declared[name].says),
        )
        for name, field in kind.model_fields.items()
    ]
    return table(("variable", "flag", "default", "allowed", "meaning"), rows)


def _variable(kind: type[BaseSettings], name: str) -> str:
    return f"{kind.model_config['env_prefix']}{name}".upper()


def _declared(kind: type[BaseSettings]) -> dict[str, Declared]:
    """Read the annotations and docstrings of the fields, inherited ones included."""
    found = {}
    for each in reversed(kind.__mro__):
        if not each.__module__.startswith("runstream."):
            continue
        (source,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        if not isinstance(source, ast.ClassDef):
            raise TypeError(f"{each.__name__} is no class.")
        for field, after in pairwise(source.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found[field.target.id] = Declared(ast.unparse(field.annotation), _text(after))
    return found


def _text(node: ast.stmt) -> str:
    match node:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return text
    raise ValueError(f"A setting has no docstring, above line {node.lineno}.")


def _by_variables(says: str) -> str:
    """Call settings by the names of their variables, as who reads the page sets them."""
    names = {name: _variable(kind, name) for _, _, kind in reversed(PARTS) for name in kind.model_fields}
    return re.sub(r"`([a-z_]+)`", lambda found: f"`{names.get(found[1], found[1])}`", says)


def _default(name: str, annotation: str, value: Any) -> str:
    match value:
        case None:
            return "unset"
        case bool():
            return f"`{str(value).lower()}`"
        case float() if "Duration" in annotation:
            return f"`{_duration(value)}`"
        case int() if "bytes" in name and value >= MEBIBYTE and value % MEBIBYTE == 0:
            return f"`{value}` ({value // MEBIBYTE} MiB)"
        case int() if "bytes" in name and value >= KIBIBYTE and value % KIBIBYTE == 0:
            return f"`{value}` ({value // KIBIBYTE} KiB)"
    return f"`{value}`"


def _duration(seconds: float) -> str:
    for size, unit in UNITS:
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def _allowed(field: FieldInfo) -> str:
    """Say what a setting may be, as far as the source has it as a bound or a choice."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    bounds: dict[str, Any] = {}
    for found in field.metadata:
        bounds |= {name: getattr(found, name) for name in ("ge", "gt", "le") if getattr(found, name, None) is not None}
    low = f"from {bounds['ge']:.0f}" if "ge" in bounds else f"above {bounds['gt']:.0f}" if "gt" in bounds else ""
    high = f"to {bounds['le']:.0f}" if "le" in bounds else ""
    return " ".join(part for part in (low, high) if part)


def _options(command: str) -> Iterator[tuple[str, Any]]:
    """Give the options of a command, each with the variable that it beats."""
    group: Any = typer.main.get_command(cli.app)
    for option in group.get_command(None, command).params:
        variable = option.envvar or f"RUNSTREAM_{option.name.upper()}"
        # Not `port` in the environment: a gateway and a broker may share one.
        yield ("RUNSTREAM_BROKER_PORT" if (command, option.name) == ("broker", "port") else variable), option


def _flags(kind: type[BaseSettings], variable: str) -> str:
    """Name the flags of a setting, with the commands that have them unless the whole table is of one command."""
    is_own = kind in SERVING.values()
    found: dict[str, list[str]] = {}
    for command in COMMANDS:
        of_command = SERVING.get(command)
        is_its_own = of_command is not None and variable in {
            _variable(of_command, name) for name in of_command.model_fields
        }
        if of_command is not kind and (is_own or is_its_own):
            continue
        for beaten, option in _options(command):
            if beaten == variable:
                flags = ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
                found.setdefault(flags, []).append(f"`{command}`")
    return "; ".join(flags if is_own else f"{flags} of {', '.join(commands)}" for flags, commands in found.items())


def _of_commands() -> str:
    """List the variables that options name, and that are no settings of a service."""
    rows: dict[str, tuple[str, str, str, str]] = {}
    for command in cli.COMMANDS:
        if command == "keys":
            continue
        for variable, option in _options(command):
            if isinstance(option.envvar, str):
                flags = ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
                # What the help has in brackets at its end is the default in words.
                says, _, said = option.help.removesuffix("]").partition(" [")
                default = said or ("unset" if option.default is None else f"`{option.default}`")
                rows.setdefault(variable, (f"`{variable}`", flags, default, says))
    return table(("variable", "flag", "default", "meaning"), [rows[name] for name in sorted(rows)])
