"""What is asked for, held against the limits of this process: before anything is done for it, and in no time."""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from runstream.broker.errors import LimitReached, Unauthenticated
from runstream.broker.limits.addresses import source_of
from runstream.broker.limits.rates import Rate
from runstream.broker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from runstream.broker.auth.principal import Principal
    from runstream.broker.limits.settings import LimitSettings

__all__ = ["LIMITS", "TOLD", "Limits"]

log = get_logger(__name__)

TOLD: Final[Mapping[str, str]] = {
    "tenant_streams": "This tenant has as many streams open as it may. Try again.",
    "key_streams": "This key has as many streams open as it may. Try again.",
    "tenant_runs": "This tenant has started as many runs in a minute as it may. Try again.",
    "key_runs": "This key has started as many runs in a minute as it may. Try again.",
    "tenant_ingest_bytes": "This tenant has sent as many bytes in a minute as it may. Try again.",
    "key_ingest_bytes": "This key has sent as many bytes in a minute as it may. Try again.",
    "address_requests": "This address has sent as many requests in a minute as it may. Try again.",
    "address_failures": "This address has shown as many bad credentials in a minute as it may. Try again.",
}
"""What is said to whoever has reached a limit, by its name."""

LIMITS: Final = (*TOLD, "connections", "address_connections", "head_seconds", "head_bytes", "answer_seconds")
"""The names of all limits; those that are about connections are held where these are made."""

STREAM_SECONDS: Final = (2.0, 6.0)
"""When to ask for a place again: some are given up any second, and nobody knows when. Drawn for each, so that those who
were refused together do not come back together."""


class _Places:
    """At most so many at one time, of each name. 0: any number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[str, int] = {}

    def are_full(self, name: str) -> bool:
        return bool(self._most) and self._taken.get(name, 0) >= self._most

    def take(self, name: str) -> None:
        self._taken[name] = self._taken.get(name, 0) + 1

    def give_up(self, name: str) -> None:
        self._taken[name] -= 1
        if not self._taken[name]:
            del self._taken[name]


class Limits:
    """What tenants, keys and addresses have of this process. Every call raises `LimitReached`, and then took nothing.

    `refused` is called with the name of a limit that was reached. Who reached it is logged, once a minute.
    """

    def __init__(
        self,
        settings: LimitSettings,
        refused: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.refused = refused
        self._streams = {
            "tenant_streams": _Places(settings.tenant_streams),
            "key_streams": _Places(settings.key_streams),
        }
        self._runs = _bounded(
            _Counted("tenant_runs", _tenant, Rate(settings.tenant_runs_per_minute, clock=clock)),
            _Counted("key_runs", _key, Rate(settings.key_runs_per_minute, clock=clock)),
        )
        self._ingest = _bounded(
            _Counted("tenant_ingest_bytes", _tenant, Rate(settings.tenant_ingest_bytes_per_minute, clock=clock)),
            _Counted("key_ingest_bytes", _key, Rate(settings.key_ingest_bytes_per_minute, clock=clock)),
        )
        self._requests = Rate(settings.address_requests_per_minute, clock=clock)
        self._failures = Rate(settings.address_failures_per_minute, clock=clock)
        self._logged = Rate(1, clock=clock)

    @contextmanager
    def trying(self, peer: str | None, forwarded: Sequence[str]) -> Iterator[None]:
        """Count a request of an address before it is known who asks; and a credential that is not good.

        One that sends none has guessed nothing.
        """
        source = source_of(peer, forwarded, self.settings.trusted_proxies or ())
        self._check("address_requests", self._requests, source)
        self._check("address_failures", self._failures, source)
        self._requests.take(source)
        try:
            yield
        except Unauthenticated as error:
            if error.reason is not None:
                self._failures.take(source)
            raise

    def stream(self, who: Principal) -> AbstractContextManager[None]:
        """Count a stream, or an upload, while the block lasts: none that is open gives way to another."""
        return _Stream(self, who)

    def begin_stream(self, who: Principal) -> None:
        """Count a stream until `end_stream`."""
        for (limit, places), name in zip(self._streams.items(), (_tenant(who), _key(who)), strict=True):
            if places.are_full(name):
                raise self._reached(limit, name, random.uniform(*STREAM_SECONDS))  # noqa: S311  # nothing hangs on it
        for places, name in zip(self._streams.values(), (_tenant(who), _key(who)), strict=True):
            places.take(name)

    def end_stream(self, who: Principal) -> None:
        """Count it no more."""
        for places, name in zip(self._streams.values(), (_tenant(who), _key(who)), strict=True):
            places.give_up(name)

    def take_run(self, who: Principal) -> None:
        """Count a run that is about to be started."""
        self._take(self._runs, who, 1)

    def put_run_back(self, who: Principal) -> None:
        """Count it no more: none was started."""
        for _, name, rate in self._runs:
            rate.put_back(name(who))

    def check_ingest(self, who: Principal) -> None:
        """Refuse what need not even be read."""
        for limit, name, rate in self._ingest:
            self._check(limit, rate, name(who))

    def take_ingest(self, who: Principal, size: int) -> None:
        """Count bytes that were sent, and are about to be stored."""
        self._take(self._ingest, who, size)

    def _take(self, counted: Sequence[_Counted], who: Principal, amount: int) -> None:
        for limit, name, rate in counted:
            self._check(limit, rate, name(who))
        for _, name, rate in counted:
            rate.take(name(who), amount)

    def _check(self, limit: str, rate: Rate, name: str) -> None:
        seconds = rate.seconds_until(name)
        if seconds:
            raise self._reached(limit, name, seconds)

    def _reached(self, limit: str, name: str, seconds: float) -> LimitReached:
        self.refused(limit)
        if not self._logged.seconds_until((limit, name)):
            self._logged.take((limit, name))
            log.warning("limit_reached", limit=limit, whose=name)
        return LimitReached(TOLD[limit], limit=limit, seconds=seconds)


class _Stream:
    """One that counts. Not made of a generator: thousands of them are open at one time."""

    __slots__ = ("_limits", "_who")

    def __init__(self, limits: Limits, who: Principal) -> None:
        self._limits = limits
        self._who = who

    def __enter__(self) -> None:
        self._limits.begin_stream(self._who)

    def __exit__(self, *_: object) -> None:
        self._limits.end_stream(self._who)


def _tenant(who: Principal) -> str:
    return who.tenant


def _key(who: Principal) -> str:
    """Return what a tenant's key is counted under. No tenant has a slash in its name."""
    return f"{who.tenant}/{who.bearer}"


class _Counted(NamedTuple):
    """What is counted: for which limit, and under which name of whoever asks."""

    limit: str
    name: Callable[[Principal], str]
    rate: Rate


def _bounded(*counted: _Counted) -> list[_Counted]:
    """Leave out what there may be any number of: it would be counted for each chunk that is stored."""
    return [each for each in counted if each.rate.is_bounded]
