"""Limits by their own clock: what comes back when, who is counted with whom, and what a flood of names leaves."""

import resource
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from runstream.broker.auth.principal import Principal
from runstream.broker.errors import LimitReached, Unauthenticated
from runstream.broker.http_server import Doors
from runstream.broker.limits.addresses import source_of
from runstream.broker.limits.limiter import LIMITS, TOLD, Limits
from runstream.broker.limits.rates import Rate
from runstream.broker.limits.settings import LimitSettings
from runstream.broker.settings import resolved

PROXIES = LimitSettings(trusted_proxies="10.0.0.0/8,fd00::/8").trusted_proxies or ()  # type: ignore[arg-type]


class Clock:
    """Time as a test makes it pass."""

    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refused() -> list[str]:
    """The limits that were reached."""
    return []


def whoever(tenant: str = "acme", *, key_id: str = "k", subject: str = "") -> Principal:
    return Principal(tenant=tenant, scopes=frozenset({"admin"}), key_id=key_id, subject=subject)


def limits_of(clock: Clock, refused: list[str], **settings: int) -> Limits:
    return Limits(LimitSettings(**settings), refused.append, clock=clock)  # type: ignore[arg-type]


# -- a rate -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_minute", [1, 7, 60, 1_000_000])
def test_a_minute_may_come_at_once_and_comes_back_evenly(clock: Clock, per_minute: int) -> None:
    """Whoever waits as long as was said has one more, and no more than one; after a minute all of it is back."""
    rate = Rate(per_minute, clock=clock)
    for _ in range(min(per_minute, 1000) - 1):
        rate.take("a")
    rate.take("a", per_minute - min(per_minute, 1000) or 0)
    assert rate.seconds_until("a") == 0
    rate.take("a")
    for _ in range(3):
        seconds = rate.seconds_until("a")
        assert seconds == pytest.approx(60 / per_minute, rel=0.01)
        clock.now += seconds
        assert rate.seconds_until("a") == 0
        rate.take("a")
    clock.now += 60
    rate.take("a", per_minute - 1)
    assert rate.seconds_until("a") == 0


def test_what_is_larger_than_a_minute_is_taken_and_waited_for(clock: Clock) -> None:
    """Nothing is too large to be ever taken; whoever comes next waits for all of it."""
    rate = Rate(60, clock=clock)
    rate.take("a", 240)
    assert rate.seconds_until("a") == pytest.approx(181)
    clock.now += 181
    assert rate.seconds_until("a") == 0


def test_names_do_not_count_for_each_other(clock: Clock) -> None:
    """One that has had all of its minute takes nothing of another's."""
    rate = Rate(1, clock=clock)
    rate.take("a")
    assert rate.seconds_until("a")
    assert not rate.seconds_until("b")


def test_what_is_put_back_was_never_taken(clock: Clock) -> None:
    """Nor is anything known of the name then."""
    rate = Rate(1, clock=clock)
    rate.take("a")
    rate.put_back("a")
    assert not rate.seconds_until("a")
    assert not len(rate)


def test_no_limit_keeps_nothing(clock: Clock) -> None:
    """0 is any number, and costs no memory."""
    rate = Rate(0, clock=clock)
    rate.take("a", 10**9)
    assert not rate.seconds_until("a")
    assert not len(rate)


def test_a_flood_of_names_leaves_no_more_than_a_bound(clock: Clock) -> None:
    """However many there are in a minute; those that came last are known, and one that goes on is among them."""
    rate = Rate(2, clock=clock, most_names=100)
    for number in range(10_000):
        rate.take(number)
        if number % 50 == 0:
            rate.take("steady")
    assert len(rate) <= 101
    assert rate.seconds_until("steady")


def test_names_are_forgotten_when_they_have_all_of_their_minute_again(clock: Clock) -> None:
    """A flood that is over is gone when half as many others have come."""
    rate = Rate(60, clock=clock)
    for number in range(1000):
        rate.take(number)
    assert len(rate) == 1000
    clock.now += 2
    for _ in range(501):
        rate.take("other")
    assert len(rate) == 1


# -- who counts with whom ---------------------------------------------------------------------------------------------


def test_a_tenant_and_its_keys(clock: Clock, refused: list[str]) -> None:
    """Keys of a tenant have a limit each, and one together; another tenant's key of the same id has its own."""
    limits = limits_of(clock, refused, tenant_runs_per_minute=3, key_runs_per_minute=2)
    limits.take_run(whoever(key_id="a"))
    limits.take_run(whoever(key_id="a"))
    with pytest.raises(LimitReached) as reached:
        limits.take_run(whoever(key_id="a"))
    assert reached.value.limit == "key_runs"
    assert reached.value.seconds == pytest.approx(30)
    limits.take_run(whoever(key_id="b"))
    with pytest.raises(LimitReached) as reached:
        limits.take_run(whoever(key_id="c"))
    assert reached.value.limit == "tenant_runs"
    limits.take_run(whoever("other", key_id="a"))
    assert refused == ["key_runs", "tenant_runs"]


def test_what_is_refused_takes_nothing(clock: Clock, refused: list[str]) -> None:
    """Who asks in vain, however often, waits no longer for it; and a key's refusal costs its tenant nothing."""
    limits = limits_of(clock, refused, tenant_runs_per_minute=2, key_runs_per_minute=1)
    limits.take_run(whoever(key_id="a"))
    for _ in range(10):
        with pytest.raises(LimitReached):
            limits.take_run(whoever(key_id="a"))
    limits.take_run(whoever(key_id="b"))
    clock.now += 60
    limits.take_run(whoever(key_id="a"))


def test_tokens_of_one_subject_count_as_one(clock: Clock, refused: list[str]) -> None:
    """Who is given a new token every ten minutes does not begin anew; tokens that name nobody count by themselves."""
    limits = limits_of(clock, refused, key_runs_per_minute=1)
    limits.take_run(whoever(key_id="1", subject="ann"))
    with pytest.raises(LimitReached):
        limits.take_run(whoever(key_id="2", subject="ann"))
    limits.take_run(whoever(key_id="3", subject="bob"))
    limits.take_run(whoever(key_id="4"))
    limits.take_run(whoever(key_id="5"))


def test_streams_are_counted_while_they_are_open(clock: Clock, refused: list[str]) -> None:
    """A place is free at once when its stream ends, however it does."""
    limits = limits_of(clock, refused, key_streams=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), limits.stream(whoever()):  # noqa: PT012
            with pytest.raises(LimitReached) as reached, limits.stream(whoever()):
                pass
            assert 2 <= reached.value.seconds <= 6
            raise ZeroDivisionError
    with limits.stream(whoever()):
        pass


def test_bad_credentials_close_an_address_and_none_does_not(clock: Clock, refused: list[str]) -> None:
    """Who guesses is refused unseen, good credentials included, until there is room for one more guess."""
    limits = limits_of(clock, refused, address_failures_per_minute=2)
    for _ in range(5):
        with pytest.raises(Unauthenticated), limits.trying("1.2.3.4", ()):
            raise Unauthenticated
    for _ in range(2):
        with pytest.raises(Unauthenticated), limits.trying("1.2.3.4", ()):
            raise Unauthenticated(reason="It is bad.")
    with pytest.raises(LimitReached) as reached, limits.trying("1.2.3.4", ()):
        pass
    assert reached.value.limit == "address_failures"
    with limits.trying("1.2.3.5", ()):
        pass
    clock.now += reached.value.seconds
    with limits.trying("1.2.3.4", ()):
        pass


def test_who_reaches_a_limit_is_logged_once_a_minute(clock: Clock, refused: list[str]) -> None:
    """Whoever is refused a thousand times a second does not fill the log as well."""
    limits = limits_of(clock, refused, key_runs_per_minute=1)
    with capture_logs() as lines:
        for _ in range(2):
            limits.take_run(whoever(subject="ann"))
            for _ in range(50):
                with pytest.raises(LimitReached):
                    limits.take_run(whoever(subject="ann"))
            clock.now += 60
    assert [(line["event"], line["limit"], line["whose"]) for line in lines] == [
        ("limit_reached", "key_runs", "acme/ann")
    ] * 2
    assert len(refused) == 100


def test_every_limit_has_words() -> None:
    """All that is said to clients, and each name once."""
    assert len({*LIMITS}) == len(LIMITS)
    assert all(text.endswith(" Try again.") for text in TOLD.values())


# -- addresses --------------------------------------------------------------------------------------------------------


def cases() -> Iterator[tuple[str | None, list[str], str]]:
    yield "1.2.3.4", [], "1.2.3.4"
    yield "1.2.3.4", ["9.9.9.9"], "1.2.3.4"  # Nobody believes a stranger.
    yield "10.0.0.1", [], "10.0.0.1"
    yield "10.0.0.1", ["9.9.9.9"], "9.9.9.9"
    yield "10.0.0.1", ["6.6.6.6, 9.9.9.9"], "9.9.9.9"  # What the client wrote itself stands before it.
    yield "10.0.0.1", ["6.6.6.6", "9.9.9.9, 10.2.2.2"], "9.9.9.9"
    yield "10.0.0.1", ["10.3.3.3, 10.2.2.2"], "10.3.3.3"
    yield "10.0.0.1", ["9.9.9.9, unknown"], "10.0.0.1"
    yield "10.0.0.1", ["9.9.9.9,"], "10.0.0.1"
    yield "10.0.0.1", ["9.9.9.9:4711"], "9.9.9.9"
    yield "10.0.0.1", ["[2001:db8:0:1::5]:80"], "2001:db8:0:1::/64"
    yield "10.0.0.1", ["9" * 10_000], "10.0.0.1"
    yield "fd00::1", ["2001:db8::1"], "2001:db8::/64"
    yield "2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::/64"
    yield "2001:db8:1:2:ffff::", [], "2001:db8:1:2::/64"
    yield "::ffff:1.2.3.4", [], "1.2.3.4"
    yield "::ffff:10.0.0.1", ["9.9.9.9"], "9.9.9.9"
    yield "fe80::1%eth0", [], "fe80::/64"
    yield None, ["9.9.9.9"], "unknown"
    yield "", [], "unknown"


@pytest.mark.parametrize(("peer", "forwarded", "expected"), [*cases()])
def test_what_a_request_is_counted_under(peer: str | None, forwarded: list[str], expected: str) -> None:
    """The right-most hop that no trusted proxy is; in IPv6 all that one line has is one."""
    assert source_of(peer, forwarded, PROXIES) == expected


def test_nobody_is_trusted_by_default() -> None:
    """Whatever is written there."""
    assert source_of("127.0.0.1", ["9.9.9.9"], LimitSettings().trusted_proxies or ()) == "127.0.0.1"


@pytest.mark.parametrize("wrong", ["10.0.0.1/8", "proxy", "10.0.0.0/8;fd00::/8", ","])
def test_proxies_that_are_none(wrong: str) -> None:
    """A process does not start with a list that would trust somebody else, or nobody."""
    with pytest.raises(Exception, match=r"trusted_proxies: .*write addresses and networks as"):
        resolved(LimitSettings, {"trusted_proxies": wrong})


# -- connections ------------------------------------------------------------------------------------------------------


def test_connections_of_an_address(refused: list[str]) -> None:
    """An address has its own number, a trusted proxy any; what was counted is forgotten with the last one."""
    doors = Doors(
        LimitSettings(address_connections=2, trusted_proxies="10.0.0.1", max_connections=9),  # type: ignore[arg-type]
        refused.append,
    )
    assert [doors.enter("1.2.3.4") for _ in range(3)] == [True, True, False]
    assert all(doors.enter("10.0.0.1") for _ in range(7))
    assert not doors.enter("5.6.7.8")
    assert refused == ["address_connections", "connections"]
    was_full = doors.is_full
    doors.leave("1.2.3.4")
    assert (was_full, doors.is_full) == (True, False)
    assert doors.enter("1.2.3.4")
    for peer in ["1.2.3.4"] * 2 + ["10.0.0.1"] * 7:
        doors.leave(peer)
    assert doors.open == 0
    assert not doors._by_source


@pytest.mark.parametrize(("descriptors", "connections"), [(100, 36), (10, 1), (resource.RLIM_INFINITY, 200)])
def test_some_descriptors_are_kept(
    monkeypatch: pytest.MonkeyPatch, refused: list[str], descriptors: int, connections: int
) -> None:
    """Clients never have all of a process's: it could not reach NATS any more."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    doors = Doors(LimitSettings(max_connections=200), refused.append)
    assert sum(doors.enter("1.2.3.4") for _ in range(300)) == connections
