"""docs/lifecycle.md shows the life of a run as it is in the code."""

import re
from pathlib import Path

from runstream.broker.ending import STEPS
from runstream.broker.lease import RENEWALS_PER_LEASE
from runstream.broker.settings import BrokerSettings
from runstream.broker.takeover import MOST_ATTEMPTS
from runstream.broker.watchdog import OBEDIENCE_SECONDS
from runstream.schemas import RUN_STATUSES, Kind, status_of
from tests.unit.test_docs import code, table

PAGE = (Path(__file__).parents[2] / "docs" / "lifecycle.md").read_text(encoding="utf-8")
TITLE = "The life of a run"


def arrows() -> list[tuple[str, str, str]]:
    """From where to where, and how, in the picture."""
    (picture,) = re.findall(r"```mermaid\n(.*?)```", PAGE, flags=re.DOTALL)
    return re.findall(r"^ +(\S+) --> (\S+): (.*)$", picture, flags=re.MULTILINE)


def test_every_state_of_the_picture_is_explained() -> None:
    """The table has the picture's states, in the order in which a run goes through them."""
    states = dict.fromkeys(name for start, end, _ in arrows() for name in (start, end) if name != "[*]")
    assert [code(row[0])[0] for row in table(PAGE, TITLE)] == list(states)


def test_every_kind_and_status_is_somewhere_in_the_table() -> None:
    """What a log may end with, and what a record may say, are all there, and nothing else is."""
    rows = table(PAGE, TITLE)
    assert {name for row in rows for name in code(row[1])} == {kind.value for kind in Kind}
    assert {name for row in rows for name in code(row[2])} == set(RUN_STATUSES)


def test_the_end_has_the_steps_of_the_code() -> None:
    """The picture goes through them in their order, and the text explains each."""
    shown = [how.split(" ")[0] for start, _, how in arrows() if start in {"speaking", "told", "released", "sealed"}]
    assert [step for step in shown if step != "chunk"] == [step.__name__ for step in STEPS]
    assert re.findall(r"\*\*(\w+)\*\*", PAGE.partition("## The steps of the end")[2].partition("##")[0]) == [
        step.__name__ for step in STEPS
    ]


def test_stop_reasons_lead_to_the_statuses_that_are_said() -> None:
    """The page's stop reasons have, in the code, the status beside them."""
    for row in table(PAGE, "The steps of the end"):
        for stop_reason in code(row[1]):
            assert status_of(stop_reason) == code(row[3])[0]


def test_figures_are_those_of_the_code() -> None:
    """Attempts, lease and patience with a cancel are as they are."""
    assert f"up to {MOST_ATTEMPTS} in all" in PAGE
    assert f"`RUNSTREAM_LEASE_SECONDS` ({BrokerSettings().lease_seconds:g})" in PAGE
    assert RENEWALS_PER_LEASE == 3, "every third of"
    assert f"{OBEDIENCE_SECONDS * 1000:g} ms after that was wished" in PAGE
