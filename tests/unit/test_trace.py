"""W3C's trace context: what is taken of it, and that nothing else is."""

from collections.abc import Sequence

import pytest

from runstream.schemas import Trace, trace_of

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
MEMBERS = [f"vendor{number}={number}" for number in range(40)]


@pytest.mark.parametrize("parent", [PARENT, PARENT.replace("00-", "cc-", 1), PARENT[:-2] + "ff"])
def test_a_trace_is_taken_as_it_is(parent: str) -> None:
    """Of any version that has this form, and with any flags."""
    assert trace_of([parent]) == Trace(parent)
    assert Trace(parent).headers == {"traceparent": parent}


@pytest.mark.parametrize(
    "parents",
    [
        [],
        [""],
        [PARENT, PARENT],
        [f"{PARENT},{PARENT}"],
        [f" {PARENT}"],
        [f"{PARENT}\n"],
        [PARENT.upper()],
        [f"{PARENT}-01"],
        [PARENT.replace("00-", "ff-", 1)],
        [f"00-{'0' * 32}-{'1' * 16}-01"],
        [f"00-{'1' * 32}-{'0' * 16}-01"],
        ["00-1-2-3"],
        ["x" * 100_000],
    ],
    ids=range(13),
)
def test_what_is_no_trace_is_none(parents: Sequence[str]) -> None:
    """And neither is its state."""
    assert trace_of(parents, ["rojo=1"]) is None


@pytest.mark.parametrize(
    ("states", "taken"),
    [
        ([], None),
        (["rojo=1"], "rojo=1"),
        (["rojo=1, congo=2\t,,", ",", "a/b-c*d_e@f=g h!~"], "rojo=1,congo=2,a/b-c*d_e@f=g h!~"),
        (["0tenant@vendor=:/+;<>"], "0tenant@vendor=:/+;<>"),
        ([",".join(MEMBERS[:32])], ",".join(MEMBERS[:32])),
        (["k" * 256 + "=1"], "k" * 256 + "=1"),
    ],
)
def test_a_state_is_one_list(states: Sequence[str], taken: str | None) -> None:
    """In however many headers, without what is empty, in its order."""
    assert trace_of([PARENT], states) == Trace(PARENT, taken)


@pytest.mark.parametrize(
    "state",
    [
        "",
        ",",
        "rojo",
        "rojo=",
        "=1",
        "Rojo=1",
        "rojo =1",
        "@=1",
        "rojo=a=b",
        "rojo=é",
        "rojo=\x7f",
        "rojo=a\tb",
        "rojo=1,congo",
        "rojo=1,rojo=2",
        ",".join(MEMBERS[:33]),
        "k" * 257 + "=1",
        "rojo=" + "x" * 257,
        "a=1," * 100_000,
    ],
    ids=range(18),
)
def test_a_state_that_is_malformed_is_left_out_whole(state: str) -> None:
    """The trace itself stays what it is."""
    assert trace_of([PARENT], [state]) == Trace(PARENT)


def test_a_state_that_is_too_long_is_shortened_by_members() -> None:
    """By long ones first, wherever they are, then by the last ones; never within one."""
    long, short = f"long={'x' * 200}", [f"v{number}={'y' * 97}" for number in range(6)]
    fits = ",".join([short[0], long, *short[1:3]])
    assert trace_of([PARENT], [fits]) == Trace(PARENT, fits)
    assert trace_of([PARENT], [",".join([long, *short])]) == Trace(PARENT, ",".join(short[:5]))
    assert trace_of([PARENT], [",".join(f"{name}={'x' * 250}" for name in "abc")]) == Trace(PARENT)
