"""What one server does not have at first is looked for again: it may have lost the others, or not have them yet."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from runstream.broker.index import Index
from runstream.broker.jetstream import JetStream
from runstream.broker.reader import LogReader
from runstream.gateway.awaiting import _Wait
from tests.support.http import Reply
from tests.support.stack import Stack, message


class Missing:
    """What is in the place of a method: the first call finds nothing, those after it what there is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.calls = 0
        find: Callable[..., Awaitable[Any]] = getattr(owner, name)
        missing = self

        async def found(*args: Any, **options: Any) -> Any:
            missing.calls += 1
            return None if missing.calls == 1 else await find(*args, **options)

        monkeypatch.setattr(owner, name, found)


async def test_a_conversation(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by whoever asks for it, or would say something in it."""
    conversation_id = await stack.conversation()
    path = f"/v1/conversations/{conversation_id}"
    with monkeypatch.context() as patched:
        missing = Missing(patched, Index, "conversation")
        assert (await stack.fetch("GET", path)).status == 200
        assert missing.calls > 1
    with monkeypatch.context() as patched:
        missing = Missing(patched, Index, "conversation")
        said = {**message({"chunks": 1}), "streaming": False}
        assert (await stack.fetch("POST", f"{path}/messages", json=said)).status == 200
        assert missing.calls > 1


@pytest.mark.parametrize(("method", "body"), [("PATCH", {"summary": "x"}), ("DELETE", None)])
async def test_a_conversation_that_is_to_change(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, method: str, body: object
) -> None:
    """Changed, or deleted, once it is found."""
    conversation_id = await stack.conversation()
    missing = Missing(monkeypatch, Index, "update_conversation")
    reply = await stack.fetch(method, f"/v1/conversations/{conversation_id}", json=body)
    assert (reply.status, missing.calls) == (200, 2)


@pytest.mark.parametrize("what", ["v1/runs/{}/messages", "v1/runstream/runs/{}/outline"])
async def test_a_log(stack: Stack, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """What a run has said is there, though one server had nothing of it."""
    run_id, _ = await stack.finished({"chunks": 2})
    before = await stack.fetch("GET", f"/{what.format(run_id)}")
    missing = Missing(monkeypatch, LogReader, "last")

    async def nothing(*_: object, **__: object) -> list[object]:
        monkeypatch.setattr(LogReader, "outline", outline)
        return []

    outline = LogReader.outline
    monkeypatch.setattr(LogReader, "outline", nothing)
    reply = await stack.fetch("GET", f"/{what.format(run_id)}")
    assert (reply.status, reply.body) == (200, before.body)
    assert missing.calls


async def test_a_run_whose_whole_answer_is_waited_for(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told that it is gone: who is would say the same thing again, and have it done twice."""
    found: Iterator[object] = iter([None, None])
    run, last = Index.run, LogReader.last

    async def no_record(self: Index, *which: str) -> Any:
        return next(found) if asyncio.current_task() in waiting and _is_left(found) else await run(self, *which)

    async def no_log(self: LogReader, address: Any) -> Any:
        return next(found) if asyncio.current_task() in waiting and _is_left(found) else await last(self, address)

    waiting: set[object] = set()
    look = _Wait._look

    async def looking(self: _Wait) -> Any:
        waiting.add(asyncio.current_task())
        try:
            return await look(self)
        finally:
            waiting.discard(asyncio.current_task())

    monkeypatch.setattr(_Wait, "_look", looking)
    monkeypatch.setattr(Index, "run", no_record)
    monkeypatch.setattr(LogReader, "last", no_log)
    said = {**message({"chunks": 1}), "streaming": False}
    reply: Reply = await stack.fetch("POST", f"/v1/conversations/{await stack.conversation()}/messages", json=said)
    assert reply.status == 200
    assert not _is_left(found)


def _is_left(found: Iterator[object]) -> bool:
    return bool(found.__length_hint__())  # type: ignore[attr-defined]


async def test_what_leaders_have_confirmed_to_be_gone_is_asked_of_them_once(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is told so by one that was just asked need not wait for another answer, which may not come."""
    run_id, _ = await stack.finished({"chunks": 1})
    record = await stack.record(run_id)
    await stack.jetstream.purge(f"RUNS_{record.shard}", f"runs.{record.shard}.{run_id}", through=2**53)
    asked, api = 0, JetStream.api

    async def once(self: JetStream, call: str, *args: Any, **options: Any) -> Any:
        nonlocal asked
        asked += call.startswith("STREAM.INFO.")
        return await api(self, call, *args, **options)

    monkeypatch.setattr(JetStream, "api", once)
    monkeypatch.setattr("runstream.broker.leaders.GOOD_FOR_SECONDS", -1.0)
    assert (await stack.fetch("GET", f"/v1/runs/{run_id}/messages")).status == 410
    assert asked == 4, "the index and the one log, over two connections"
