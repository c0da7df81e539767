"""What an agent says, on a terminal: its tools' calls and returns in either form, and a platform's own texts."""

from io import StringIO
from typing import Any

import pytest

from runstream.gateway.commands.output import Output
from runstream.gateway.commands.said import Transcript


def shown(*chunks: dict[str, Any]) -> str:
    """What people see of these chunks."""
    file = StringIO()
    transcript = Transcript(Output(file=file, width=80))
    for chunk in chunks:
        transcript.show(chunk)
    transcript.close("[end]")
    return file.getvalue()


def call(name: str, arguments: str, call_id: str | None = "call-1") -> dict[str, Any]:
    return {"name": name, "arguments": arguments, "tool_call_id": call_id}


def calling(said: dict[str, Any], message_id: str = "message-1") -> dict[str, Any]:
    return {"id": message_id, "message_type": "tool_call_message", **said}


def returned(**said: Any) -> dict[str, Any]:
    return {"id": "message-2", "message_type": "tool_return_message", **said}


@pytest.mark.parametrize("name", ["text", "content", "delta"])
def test_chunks_of_a_platforms_own_are_read_as_one_text(name: str) -> None:
    """Where they have a text; one that has none is shown as it is."""
    text = shown({name: "Nothing "}, {name: "is lost."}, {"progress": 0.5}, {name: ["no", "text"]})
    assert text.splitlines() == ["Nothing is lost.", '{"progress": 0.5}', f'{{"{name}": ["no", "text"]}}', "[end]"]


@pytest.mark.parametrize("form", ["tool_call", "tool_calls"])
def test_a_call_that_comes_in_pieces_is_one(form: str) -> None:
    """Its name is said once, and what it is called with is put together, whichever form it has."""
    text = shown(
        calling({form: call("look", '{"at": ')}),
        calling({form: call("look", '"the sky', None)}),
        calling({form: call("look", '"}')}),
    )
    assert text.count("calls look") == 1
    assert '{"at": "the sky"}' in text


def test_calls_at_one_time_are_all_shown() -> None:
    """The newer form has all of them, the older only the first; their pieces may take turns."""
    text = shown(
        calling({"tool_call": call("look", "up"), "tool_calls": [call("look", "up"), call("hear", "all ", "call-2")]}),
        calling({"tool_calls": [call("", "wards", "call-1"), call("", "of it", "call-2")]}),
    )
    assert (text.count("calls look"), text.count("calls hear")) == (1, 1)
    assert "upwards" in text
    assert "all of it" in text


def test_calls_of_two_messages_are_two() -> None:
    """What the first is called with is complete when the second begins."""
    text = shown(
        calling({"tool_call": call("look", "up")}),
        calling({"tool_call": call("look", "down", "call-3")}, "message-3"),
    )
    assert text.count("calls look") == 2
    assert text.index("up") < text.index("down")


def test_everything_that_tools_returned_is_shown() -> None:
    """One in the older form, or all in the newer; the name is the first one's."""
    assert "look returned" in shown(returned(name="look", tool_return="blue", status="success"))
    several = [{"tool_return": "blue", "status": "success"}, {"tool_return": "no sound", "status": "error"}]
    text = shown(returned(name="look", tool_return="blue", tool_returns=several))
    assert (text.count("look returned"), text.count("tool returned"), text.count("blue")) == (1, 1, 1)
    assert "no sound" in text


@pytest.mark.parametrize("odd", [None, 7, "look", ["look"], {}])
def test_what_is_no_call_is_shown_as_one_without_a_name(odd: object) -> None:
    """Nobody sees to it that what an agent calls a call is one."""
    assert "calls" in shown(calling({"tool_call": odd}), calling({"tool_calls": odd}))
