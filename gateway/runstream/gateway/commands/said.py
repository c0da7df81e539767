"""What an agent says, on a terminal: its text as it comes, its reasoning dim, its tools in panels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from runstream.gateway.commands.terminal import harmless

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

__all__ = ["Transcript"]

STYLES: Final = {"assistant_message": "", "reasoning_message": "dim", "hidden_reasoning_message": "dim"}
CALLS: Final = {"tool_call_message": "calls", "approval_request_message": "asks to call"}
OWN_TEXTS: Final = ("text", "content", "delta")
QUIET: Final = frozenset({"ping", "stop_reason", "usage_statistics"})


class Transcript:
    """Shows the chunks of a run. Chunks of one message share its id, and are put together."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._message: object = None
        """The message whose text is being shown."""
        self._in_line = False
        self._caller: object = None
        """The message whose tool calls are being put together."""
        self._calls: dict[str, dict[str, str]] = {}
        """Those of its calls that have begun, by their ids."""

    def show(self, chunk: Mapping[str, Any]) -> None:
        """Show one chunk, or keep it until its message is complete."""
        kind = str(chunk.get("message_type"))
        if kind in CALLS:
            self._gather(kind, chunk)
            return
        if kind == "ping":
            return
        self.finish_calls()
        if kind in STYLES:
            self._say(chunk, kind)
        elif kind == "tool_return_message":
            name = chunk.get("name")
            for each in _all_of(chunk.get("tool_returns")) or _all_of(chunk):
                self._panel(f"{name or 'tool'} returned", _text(each.get("tool_return")), each.get("status"))
                name = None  # It is the first one's.
        elif kind == "error_message":
            self.fail(chunk)
        elif "message_type" not in chunk and (text := _text_of_its_own(chunk)) is not None:
            self._put(text, ("", None), "")
        elif kind not in QUIET:
            self._line(json.dumps(chunk, ensure_ascii=False), "dim")

    def fail(self, error: Mapping[str, Any]) -> None:
        """Show what the run failed with."""
        detail = f" ({error['detail']})" if error.get("detail") else ""
        self._line(f"{error.get('error_type')}: {error.get('message')}{detail}", "bold red")

    def close(self, said: str, style: str = "dim") -> None:
        """End the text that was begun, and say one thing more."""
        self.finish_calls()
        self._line(said, style)

    def finish_calls(self) -> None:
        """Show the tool calls that are complete, if there are any."""
        calls, self._calls, self._caller = self._calls, {}, None
        for call in calls.values():
            self._panel(f"{call['verb']} {call['name']}", call["arguments"], None)

    def end_line(self) -> None:
        """Let what comes next begin on a line of its own."""
        if self._in_line:
            self._console.print()
        self._in_line, self._message = False, None

    def _say(self, chunk: Mapping[str, Any], kind: str) -> None:
        field = "content" if kind == "assistant_message" else "reasoning"
        text = _text(chunk.get(field) or chunk.get("hidden_reasoning"))
        self._put(text, (kind, chunk.get("id")), STYLES[kind])

    def _put(self, text: str, message: tuple[str, object], style: str) -> None:
        if message != self._message:
            self.end_line()
            self._message = message
        self._console.print(Text(harmless(text), style=style), end="", soft_wrap=True)
        self._in_line = self._in_line or bool(text)

    def _gather(self, kind: str, chunk: Mapping[str, Any]) -> None:
        caller = kind, chunk.get("id")
        if caller != self._caller:
            self.finish_calls()
        self._caller = caller
        # `tool_call` is the older form of the first of `tool_calls`.
        for call in _all_of(chunk.get("tool_calls")) or _all_of(chunk.get("tool_call")) or [{}]:
            # Of a piece that does not say, the call is the one before.
            call_id = str(call.get("tool_call_id") or next(reversed(self._calls), ""))
            found = self._calls.setdefault(call_id, {"verb": CALLS[kind], "name": "", "arguments": ""})
            name = str(call.get("name") or "")
            found["name"] = name if name == found["name"] else found["name"] + name
            found["arguments"] += _text(call.get("arguments"))

    def _panel(self, title: str, text: str, status: object) -> None:
        self.end_line()
        style = "red" if status == "error" else "cyan"
        self._console.print(
            Panel(Text(harmless(text)), title=escape(harmless(title)), title_align="left", border_style=style)
        )

    def _line(self, text: str, style: str) -> None:
        self.end_line()
        self._console.print(Text(harmless(text), style=style), soft_wrap=True)


def _text_of_its_own(chunk: Mapping[str, Any]) -> str | None:
    """Return the text of what is no message, but a platform's own: where it stands with most of them."""
    return next((text for name in OWN_TEXTS if isinstance(text := chunk.get(name), str)), None)


def _all_of(found: object) -> list[dict[str, Any]]:
    """Give what there is one of, or a list of, as a list; nothing of what is neither."""
    return [each for each in (found if isinstance(found, list) else [found]) if isinstance(each, dict)]


def _text(content: object) -> str:
    """Give the text of a content: a string, a list of parts, or whatever else as JSON."""
    match content:
        case None:
            return ""
        case str():
            return content
        case list():
            return "".join(_text(part.get("text", "")) if isinstance(part, dict) else _text(part) for part in content)
    return json.dumps(content, ensure_ascii=False)
