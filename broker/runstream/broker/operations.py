"""An HTTP operation, declared once beside its handler: what it takes and what it answers.

What is declared is what is served, and what `/openapi.json` describes; so neither can be forgotten.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

import msgspec

from runstream.broker.auth.principal import Scope
from runstream.schemas import AGENT_PATH, RUN_PATH, STRICT_CONVERSATION_PATH, PathPattern

__all__ = ["JSON", "OPEN", "SERVER_SENT_EVENTS", "TEXT", "Access", "Answer", "Body", "Handler", "Header", "Operation"]

JSON: Final = "application/json"
SERVER_SENT_EVENTS: Final = "text/event-stream"
TEXT: Final = "text/plain"

OPEN: Final = "open"
Access: TypeAlias = Scope | Literal["open"]
"""The scope that is needed, or that nobody is asked who they are."""

Handler: TypeAlias = Callable[[Any], Awaitable[Any]]
"""What answers: an aiohttp request in, an aiohttp response out."""

_SAID = re.compile(r"`[A-Z]+ [^`]+`(?:: |\. )?")
"""How a handler's docstring begins: with what it answers, which a description says anyway."""

PATH_PARAMETERS: Final[Mapping[str, PathPattern]] = {
    "agent_id": AGENT_PATH,
    "conversation_id": STRICT_CONVERSATION_PATH,
    "run_id": RUN_PATH,
}


class Body(msgspec.Struct, frozen=True):
    """What is sent: what it fits, and the media type it is written in.

    A shape is a type that msgspec can describe, or a pydantic model. Of several one fits; none: it is just text.
    """

    shapes: Sequence[Any]
    media: str = JSON
    adds: Mapping[str, Any] = {}
    """Schemas of keys that it has on the wire beyond its shape."""


class Header(msgspec.Struct, frozen=True):
    """A header that means something here."""

    name: str
    says: str
    shape: Mapping[str, Any] = MappingProxyType({"type": "string"})


class Answer(msgspec.Struct, frozen=True):
    """What a status means, and what comes with it."""

    says: str
    bodies: Sequence[Body] = ()
    headers: Sequence[Header] = ()

    def joined(self, other: Answer) -> Answer:
        """Give the answer that is either of two with the same status."""
        headers = {header.name: header for header in (*self.headers, *other.headers)}
        bodies = [*self.bodies, *(body for body in other.bodies if body not in self.bodies)]
        return Answer(f"{self.says} Or: {other.says}", bodies, [*headers.values()])


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One method of one path. What it does is the first paragraph of its handler's docstring."""

    method: str
    path: str
    handler: Handler
    scope: Access
    """Without a default: who adds an operation says who may."""
    answers: Mapping[int | str, Answer]
    """By status; `4XX` for whatever a platform refuses with."""
    query: Any = None
    """A pydantic model of the parameters in the query."""
    query_names: Sequence[str] | None = None
    """Which of the model's fields are looked at; None for all."""
    bodies: Sequence[Body] = ()
    """The forms that the request's body may have; none: it has no body."""
    is_body_required: bool = False
    headers: Sequence[Header] = ()
    """Headers of the request's that are looked at."""
    always: Sequence[Header] = ()
    """Headers of every answer."""
    is_deprecated: bool = False
    is_for_browsers: bool = False
    """Whether a browser asks that can send no header, and comes back by itself: an EventSource."""
    path_patterns: Mapping[str, PathPattern] = {}
    """What the path's parameters look like, where that is not what `PATH_PARAMETERS` says."""

    @property
    def name(self) -> str:
        """Its name among all operations: the room it is in, and the function that answers."""
        return f"{self.room}_{self.handler.__name__}"

    @property
    def room(self) -> str:
        """What it is about: the name of its handler's file, or of the folder whose routes are in one."""
        return self.handler.__module__.removesuffix(".routes").rpartition(".")[2]

    @property
    def says(self) -> str:
        """What it does, in words."""
        text = inspect.cleandoc(self.handler.__doc__ or "").split("\n\n")[0]
        said = _SAID.sub("", " ".join(text.split()), count=1)
        return said[:1].upper() + said[1:]

    @property
    def parameters(self) -> dict[str, PathPattern]:
        """The parameters in its path, in order."""
        known = {**PATH_PARAMETERS, **self.path_patterns}
        return {name: known[name] for name in re.findall(r"\{(\w+)\}", self.path)}
