"""The table of excuses is about what can happen: what faults are done to, and who was concerned."""

import itertools

import pytest

from tests.chaos.excuses import (
    ENDING,
    NOTICES,
    REFUSALS,
    RESPONSES,
    RUNS,
    TELLING,
    WHERE,
    Concerned,
    Reasons,
    Site,
    sites_of,
    touches,
)
from tests.chaos.history import process_of
from tests.chaos.world import KINDS, ROUTES

SERVED = {"gateway", "reader->gateway"}


@pytest.mark.parametrize(
    ("target", "sites"),
    [
        ("gateway-0", [("gateway", "gateway-0")]),
        ("gateway-1,gateway-0", [("gateway", "gateway-1"), ("gateway", "gateway-0")]),
        ("reader->gateway-0", [("reader->gateway", "gateway-0")]),
        ("gateway-0->nats-2", [("gateway->nats", "gateway-0")]),
        ("writer->broker-1", [("writer->broker", "broker-1")]),
        ("broker-1->nats-0", [("broker->nats", "broker-1")]),
        ("library->nats-0", [("writer->nats", "library")]),
        ("nats-0->nats-1", [("nats->nats", "nats-0")]),
        ("nats-0", [("nats", "nats-0")]),
        ("library", [("writer", "library")]),
        ("RUNS_0", [("store", "RUNS_0")]),
        ("machine", [("machine", "machine")]),
    ],
)
def test_a_target_names_what_a_fault_was_done_to(target: str, sites: list[tuple[str, str]]) -> None:
    """What is between two is that one's who needs it; all of it is something that the table may name."""
    assert list(sites_of(target)) == [Site(*site) for site in sites]
    assert {site.where for site in sites_of(target)} <= WHERE


def test_every_line_of_a_world_is_in_the_table() -> None:
    """Of whichever kinds the two are that it is between."""
    names = {"library": "writer"}
    for place in (*KINDS, ROUTES):
        near, far = (names.get(end, end) for end in place.split("-"))
        assert f"{near}->{far}" in WHERE, place


def test_the_table_names_nothing_that_there_is_not() -> None:
    """A word that is misspelt would excuse nothing, and nobody would know."""
    rows: list[Reasons] = [*RESPONSES.values(), *NOTICES.values(), *REFUSALS.values(), TELLING, *ENDING.values()]
    rows += itertools.chain.from_iterable(of.values() for of in RUNS.values())
    assert set().union(*itertools.chain.from_iterable(rows)) <= WHERE


@pytest.mark.parametrize(
    ("target", "concerned", "does"),
    [
        ("gateway-0", Concerned(gateways=["gateway-0"]), True),
        ("gateway-0", Concerned(gateways=["gateway-1"]), False),
        ("gateway-0", Concerned(gateways=None), True),
        ("gateway-0", Concerned(), False),
        ("gateway-1,gateway-0", Concerned(gateways=["gateway-0"]), True),
        ("reader->gateway-0", Concerned(gateways=["gateway-0"]), True),
        ("reader->gateway-1", Concerned(gateways=["gateway-0"]), False),
        ("gateway-0->nats-0", Concerned(gateways=["gateway-0"]), False),
        ("nats-0", Concerned(gateways=["gateway-0"]), False),
        ("broker-0", Concerned(gateways=["gateway-0"], brokers=None), False),
    ],
)
def test_a_fault_touches_whom_it_was_done_to(target: str, concerned: Concerned, does: bool) -> None:
    """There, and to that very one, if it is known which it was."""
    assert touches(target, SERVED, concerned) == does


@pytest.mark.parametrize(
    ("name", "process"),
    [
        ("libraryp4711n12", "library"),
        ("clientsp4711-clientsp4711n3", "clients"),
        ("readers0p4711-12", "readers0"),
        ("live-first", "live"),
    ],
)
def test_a_name_says_whose_it_is(name: str, process: str) -> None:
    """A token's, and a reader's, whichever time the process was started."""
    assert process_of(name) == process


def test_reasons_are_told_in_words() -> None:
    """As a violation says what there was not."""
    assert str(RESPONSES["cut"]) == "outage of gateway, reader->gateway or drain of gateway"
    assert str(Reasons()) == "reason that would do"
