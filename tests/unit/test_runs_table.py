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
    Output(file=file, width=width).print(table_of(found, width), crop=False)
    return file.getvalue().splitlines()[1:]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_window_cuts_an_id(width: int) -> None:
    """Nor what became of a run, how old it is and how long it took; what there is no room for is left out."""
    found = [run(), run(status="cancelled", stop_reason="context_window_overflow_in_system_prompt")]
    for each, line in zip(found, lines(found, width), strict=True):
        assert len(line) <= width
        assert line.split()[:4] == [each["id"], each["status"], "0s", "12.0s"]
        ids = [part for part in line.split() if part.startswith(("agent-", "conv-"))]
        assert set(ids) <= {each["agent_id"], each["conversation_id"]}, "an id is cut off"


def test_the_least_that_is_shown_is_which_run_its_status_and_its_age() -> None:
    """In one line at 60 columns; the id is whole, with the others below it, at 40 and in a window that is narrower."""
    each = run(stop_reason="context_window_overflow_in_system_prompt")
    assert [line.split() for line in lines([each], 60)] == [[each["id"], "completed", "0s"]]
    for width in (30, 40):
        assert [line.split() for line in lines([each], width)] == [[each["id"]], ["completed", "0s"]]


@pytest.mark.parametrize(("width", "count"), [(60, 3), (64, 4), (80, 5), (100, 5), (140, 6), (170, 7)])
def test_a_window_has_the_more_useful_columns(width: int, count: int) -> None:
    """As many as it has room for, in the order of the headings."""
    (line,) = lines([run()], width)
    assert len(line.split()) == count


def test_a_wide_window_shows_whole_ids() -> None:
    """Each can be given to another command."""
    each = run()
    (line,) = lines([each], 200)
    assert line.split()[-2:] == [each["agent_id"], each["conversation_id"]]


def test_a_time_without_a_zone_is_in_utc() -> None:
    """Letta's own server writes some of its times so."""
    made = (datetime.now(UTC) - timedelta(hours=3)).replace(tzinfo=None).isoformat()
    (line,) = lines([run(created_at=made)], 200)
    assert "3h" in line.split()


def test_what_looks_like_markup_is_text() -> None:
    """An agent's stop reason is anybody's."""
    (line,) = lines([run(stop_reason="[bold]\x1b[2J")], 200)
    assert "[bold]\N{REPLACEMENT CHARACTER}[2J" in line
