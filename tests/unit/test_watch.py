"""The watch over followers in a silence: what is due comes when it is, and not when somebody happens to look."""

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from runstream.gateway.follower import Watch


def looked(silent: float, *, is_full: bool, keepalive: float, deadline: float) -> tuple[list[str], list[float]]:
    """What comes of a look at a follower to whom nothing was written for so long, and when the next one is."""
    came: list[str] = []
    again: list[float] = []
    watch = Watch(keepalive=keepalive, deadline=deadline, on_blocked=lambda _: came.append("blocked"))
    watch._looks = cast("Any", SimpleNamespace(put=lambda _, seconds: again.append(seconds)))
    follower = SimpleNamespace(
        response=SimpleNamespace(buffered=int(is_full)),
        written_at=time.monotonic() - silent,
        framing=SimpleNamespace(include_pings=True),
        is_done=False,
        keep_alive=lambda: came.append("ping"),
    )
    watch._look(cast("Any", follower))
    return came, again


@pytest.mark.parametrize(
    ("times", "silent", "is_full", "came", "again"),
    [
        ((20, 30), 20, False, ["ping"], [20]),
        ((20, 30), 8, False, [], [12]),
        ((20, 30), 20, True, [], [10]),
        ((20, 30), 30, True, ["blocked"], []),
        ((20, 15), 15, False, [], [5]),
        ((20, 5), 5, False, [], [5]),
        ((20, 5), 4, True, [], [1]),
        ((20, 5), 5, True, ["blocked"], []),
    ],
)
def test_the_next_look_is_at_the_next_moment(
    times: tuple[float, float], silent: float, is_full: bool, came: list[str], again: list[float]
) -> None:
    """A ping and the end of a blocked write come at their own times, whichever of the two is the shorter."""
    keepalive, deadline = times
    found, looks = looked(silent, is_full=is_full, keepalive=keepalive, deadline=deadline)
    assert found == came
    assert looks == pytest.approx(again, abs=0.5)
