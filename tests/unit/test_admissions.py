"""Who stands no longer: a defect in judging one, or in ending what goes on in his name, lets nobody else go on."""

import asyncio
import contextlib
from typing import Self, cast

import pytest
from structlog.testing import capture_logs

from runstream.broker.auth import admissions as module
from runstream.broker.auth.admissions import Admissions
from runstream.broker.auth.principal import Principal
from runstream.broker.auth.revoking import Revocations
from tests.support.waiting import wait_until


class Changing:
    """Knows who is who until it is said that it has changed; of one it cannot say."""

    changes = 0
    unready = None

    async def principal(self, credential: str | None) -> Principal:
        return Principal(tenant="default", scopes=frozenset(), key_id=credential or "")

    def stands(self, who: Principal) -> bool:
        if self.changes and who.key_id == "defective":
            raise ZeroDivisionError
        return not self.changes


class NothingRevoked:
    """Nothing ever is."""

    changes = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def known(self) -> None:
        pass

    def has(self, _: str) -> bool:
        return False


async def test_a_defect_of_one_keeps_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cannot be judged is ended, and so are those behind one whose end fails."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    knowing, ended = Changing(), list[str]()

    def fail() -> None:
        ended.append("failing")
        raise ZeroDivisionError

    with capture_logs() as lines:
        async with Admissions(knowing, cast("Revocations", NothingRevoked())) as admissions:
            with contextlib.ExitStack() as stack:
                for name in ("first", "defective", "last"):
                    who = await admissions.principal(name)
                    stack.enter_context(admissions.over(who, fail))
                    stack.enter_context(admissions.over(who, lambda name=name: ended.append(name)))  # type: ignore[misc]  # a default binds
                knowing.changes = 1
                await wait_until(lambda: len(ended) == 6, 5, "somebody goes on")
            assert not asyncio.current_task().cancelling()  # type: ignore[union-attr]  # a test runs in one
    assert sorted(ended) == ["defective", "failing", "failing", "failing", "first", "last"]
    assert {line["event"] for line in lines} == {"admission_not_judged", "admission_not_ended"}
