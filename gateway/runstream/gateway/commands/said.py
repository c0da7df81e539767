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
QUIET: Final = frozenset({"ping", "stop_reason", "usage_statistics"})


class Transcript:
    """Shows the chunks of a run. Chunks of one message share its id, and are put together."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._message: object = None
        """The message whose text is being shown."""
        self._in_line = False
        self._call: dict[str, str] | None = None
        """The tool call that is being put together."""

    def show(self, chunk: Mapping[str, Any]) -> None:
        """Show one chunk, or keep it until its message is complete."""
        kind = str(chunk.get("message_type"))
        if kind in CALLS:
            self._gather(kind, chunk)
            return
        if kind == "ping":
            return
        self.finish_call()
        if kind in STYLES:
            self._say(chunk, kind)
        elif kind == "tool_return_message":
            self._panel(f"{chunk.get('name') or 'tool'} returned", _text(chunk.get("tool_return")), chunk.get("status"))
        elif kind == "error_message":
            self.fail(chunk)
        elif kind not in QUIET:
            self._line(json.dumps(chunk, ensure_ascii=False), "dim")

    def fail(self, error: Mapping[str, Any]) -> None:
        """Show what the run failed with."""
        detail = f" ({error['detail']})" if error.get("detail") else ""
        self._line(f"{error.get('error_type')}: {error.get('message')}{detail}", "bold red")

    def close(self, said: str, style: str = "dim") -> None:
        """End the text that was begun, and say one thing more."""
        self.finish_call()
        self._line(said, style)

    def finish_call(self) -> None:
        """Show the tool call that is complete, if there is one."""
        call, self._call = self._call, None
        if call is not None:
            self._panel(f"{call['verb']} {call['name']}", call["arguments"], None)

    def end_line(self) -> None:
        """Let what comes next begin on a line of its own."""
        if self._in_line:
            self._console.print()
        self._in_line, self._message = False, None

    def _say(self, chunk: Mapping[str, Any], kind: str) -> None:
        field = "content" if kind == "assistant_message" else "reasoning"
        text = _text(chunk.get(field) or chunk.get("hidden_reasoning"))
        if (kind, chunk.get("id")) != self._message:
            self.end_line()
            self._message = kind, chunk.get("id")
        self._console.print(Text(harmless(text), style=STYLES[kind]), end="", soft_wrap=True)
        self._in_line = self._in_line or bool(text)

    def _gather(self, kind: str, chunk: Mapping[str, Any]) -> None:
        call = chunk.get("tool_call") or {}
        if not isinstance(call, dict):
            call = {}
        name, call_id = str(call.get("name") or ""), str(call.get("tool_call_id") or chunk.get("id"))
        if self._call is not None and self._call["id"] != call_id:
            self.finish_call()
        if self._call is None:
            self._call = {"id": call_id, "verb": CALLS[kind], "name": "", "arguments": ""}
        self._call["name"] = name if name == self._call["name"] else self._call["name"] + name
        self._call["arguments"] += _text(call.get("arguments"))

    def _panel(self, title: str, text: str, status: object) -> None:
        self.end_line()
        style = "red" if status == "error" else "cyan"
        self._console.print(
            Panel(Text(harmless(text)), title=escape(harmless(title)), title_align="left", border_style=style)
        )

    def _line(self, text: str, style: str) -> None:
        self.end_line()
        self._console.print(Text(harmless(text), style=style), soft_wrap=True)


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
