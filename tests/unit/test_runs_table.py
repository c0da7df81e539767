"""The table of `runstream runs`: what is in it in a window of any width."""

from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest

from runstream.gateway.commands.output import Output
from runstream.gateway.commands.runs import table_of
from runstream.schemas import new_agent_id, new_conversation_id, new_run_id, timestamp


def run(**given: Any) -> dict[str, Any]:
    """A run as the API has it, as far as the table shows it."""
    return {
        "id": new_run_id(),
        "status": "completed",
        "stop_reason": "end_turn",
        "created_at": timestamp(datetime.now(UTC)),
        "agent_id": new_agent_id(),
        "conversation_id": new_conversation_id(),
        "total_duration_ns": 12_000_000_000,
        **given,
    }


def lines(found: list[dict[str, Any]], width: int) -> list[str]:
    """What people see, below the headings."""
    file = StringIO()
    Output(file=file, width=width).print(table_of(found))
    return file.getvalue().splitlines()[1:]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_a_narrow_window_shows_less_of_agents_and_conversations(width: int) -> None:
    """Which run, what became of it, when it was made and how long it took: nothing of that is cut off."""
    found = [run(), run(status="cancelled", stop_reason="context_window_overflow_in_system_prompt")]
    for each, line in zip(found, lines(found, width), strict=True):
        shown = line.split()
        assert shown[:2] == [each["id"], each["status"]]
        assert "0s ago" in line
        assert "12.0s" in shown


def test_a_wide_window_shows_whole_ids() -> None:
    """Each can be given to another command."""
    each = run()
    (line,) = lines([each], 200)
    assert line.split()[-2:] == [each["agent_id"], each["conversation_id"]]


def test_a_time_without_a_zone_is_in_utc() -> None:
    """Letta's own server writes some of its times so."""
    made = (datetime.now(UTC) - timedelta(hours=3)).replace(tzinfo=None).isoformat()
    (line,) = lines([run(created_at=made)], 200)
    assert "3h ago" in line


def test_what_looks_like_markup_is_text() -> None:
    """An agent's stop reason is anybody's."""
    (line,) = lines([run(stop_reason="[bold]\x1b[2J")], 200)
    assert "[bold]\N{REPLACEMENT CHARACTER}[2J" in line
