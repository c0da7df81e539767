"""Writes docs/reference/errors.md: what a run, a request of ingest's, a library call and a command can fail with."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING

from deploy.reference.tables import WRITTEN, table
from runstream.broker import errors
from runstream.broker.ingest.errors import STATUSES
from runstream.gateway.commands.exits import MEANINGS
from runstream.schemas import ERROR_TYPES, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CUTS", "page"]

HEAD = f"""\
# Error types

{WRITTEN}

| what fails | how it is told |
|---|---|
| [a run](#of-a-run) | `event: error` in its stream, with an `error_type`; the same in the run's `metadata.error` |
| a response, and not its run | the same, with `seq_id` null, and [the cut](../../PROTOCOL.md#the-cut) |
| a request to the gateway | a status and a `detail`: [all of them](../../PROTOCOL.md#refusals), word for word |
| [a request of ingest's](#of-ingest) | a status, a `detail` for people and an `error_type` for programs |
| [a call of the library's](#of-the-library) | an exception |
| [a command](#of-a-command) | its exit code, and one line on stderr |

What a client does after each is in [one table](../guides/letta-client.md#what-a-client-meets-when-a-stream-ends).
"""
CUTS = frozenset({"store_unavailable", "expired", "log_broken", "credential_expired"})
"""What a response is cut with, and no run ends with."""
OR_A_CUT = {"store_full": "; or the response alone"}
OF_A_RUN = """\
## Of a run

An agent may use types of its own. These have a text and a stop reason; who gives them is [in
PROTOCOL.md](../../PROTOCOL.md#error-types).
"""
OF_INGEST = """\
## Of ingest

When each is told, and what to do then, is [in PROTOCOL.md](../../PROTOCOL.md#ingest-errors). A 4xx is for the writer
to mend; a 5xx may be sent again as it is, to any broker.
"""
OF_THE_LIBRARY = """\
## Of the library

`runstream.broker.errors`, one tree. What `Runs` raises, and when, is [in the
guide](../guides/library.md#what-open-and-publish-raise); others stay within brokers and gateways.
"""
OF_A_COMMAND = """\
## Of a command

Exit codes; each command's help says which are its own.
"""


def page() -> str:
    """Say all that is declared."""
    runs = [(f"`{name}`", *_ends(name, of.stop_reason), of.message) for name, of in ERROR_TYPES.items()]
    ingest = [(f"`{name}`", str(status.value)) for name, status in STATUSES.items()]
    codes = [(str(code.value), says) for code, says in MEANINGS.items()]
    return "\n".join(
        [
            HEAD,
            OF_A_RUN,
            table(("`error_type`", "stop reason", "what has ended", "what clients are told"), runs),
            OF_INGEST,
            table(("`error_type`", "status"), ingest),
            OF_THE_LIBRARY,
            f"```text\n{_drawing()}\n```\n",
            table(("class", "what it says"), _classes()),
            OF_A_COMMAND,
            table(("code", ""), codes),
        ]
    )


def _ends(error_type: str, stop_reason: str) -> tuple[str, str]:
    """Say what stop reason comes with an error, and what has ended with it."""
    if error_type in CUTS:
        return "none", "the response; not the run"
    return f"`{stop_reason}`", f"the run, as `{status_of(stop_reason)}`{OR_A_CUT.get(error_type, '')}"


def _drawing() -> str:
    """Give the tree as it is drawn at the top of the source."""
    lines = inspect.getdoc(errors) or ""
    return "\n".join(line for line in lines.splitlines() if line.startswith(("BrokerError", "├", "│", "└")))


def _classes() -> Iterator[tuple[str, str]]:
    """Give each class with the first sentence of its docstring, which is its message."""
    for node in ast.parse(inspect.getsource(errors)).body:
        if isinstance(node, ast.ClassDef):
            yield f"`{node.name}`", (ast.get_docstring(node) or "").split("\n\n")[0]
