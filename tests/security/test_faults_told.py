"""What every operation of both ports answers when the store fails it, or the source does: what its asker can act on.

Each has a fault of every kind thrown at it from where NATS is asked, with a text that nobody outside may see.
"""

import functools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytest_asyncio
import structlog

from runstream.broker import bucket, index
from runstream.broker.errors import (
    BrokenLog,
    BrokenRecord,
    Contended,
    NotStored,
    Refused,
    StoreFull,
    StoreRefused,
    Unavailable,
)
from runstream.broker.jetstream import JetStream
from runstream.broker.operations import Operation
from runstream.schemas import new_agent_id, new_run_id
from tests.security.test_http import INSIDE, POISON
from tests.security.test_matrix import ALL, BODIES, Things
from tests.support.http import Reply, fetch
from tests.support.ingest import NDJSON
from tests.support.stack import Stack, message, stack_running

POISONED = "poisoned"
SECRET_RUN = new_run_id()
"""Another's, which the fault names."""
TEXT = f"{POISON} {SECRET_RUN}"
FAULTS: dict[str, Callable[[], Exception]] = {
    "a defect": lambda: RuntimeError(TEXT),
    "another defect": lambda: KeyError(TEXT),
    "unavailable": lambda: Unavailable(TEXT, subject=TEXT),
    "contended": lambda: Contended(TEXT),
    "not stored": lambda: NotStored(TEXT),
    "refused": lambda: Refused(TEXT, subject=TEXT),
    "store refused": lambda: StoreRefused(TEXT, code=10999),
    "store full": lambda: StoreFull(TEXT),
    "broken log": lambda: BrokenLog(TEXT, subject=TEXT),
    "broken record": lambda: BrokenRecord(TEXT, key=TEXT),
}
DEFECTS = {"a defect", "another defect"}
NEED_NOTHING = {"health_health", "sessions_read", "sessions_open_session", "sessions_close"}
"""Of all operations, where nobody is asked who they are."""
QUERIES = {"watching_figures": "?run_ids={run_id}", "watching_find": "?otid=otid-1"}
"""What stands in those that need one."""
FOR_OPERATORS = "checkups_checkup"
"""It tells of streams, versions and settings; of what failed no more than others."""
FAILED = re.compile(r"\$JS|_INBOX_gateway\.x|runs\.0|nats: timeout|Traceback|File \"|\.py\b|run-secret")
ASKED = ("api", "last_message", "first_message", "message_at", "consume", "publish", "publish_batch", "last_messages")
GENERIC = re.compile(
    r"An unknown error occurred\.?|What is stored of this cannot be read: an operator has to look at it\.|"
    r"The store is not reachable at the moment\. Try again\.|The store is full: an operator has to make room.*|"
    r"The store has no streams yet: a broker makes them.*|It is not known whether the run was (started|opened): .*|"
    r"This gateway is still reading what there is\. Try again\.|Run run-[0-9a-f-]{36} was .*|No agent is configured\."
)
"""All that is said of what is nobody's fault outside."""


@pytest_asyncio.fixture(scope="module")
async def stack(nats_url: str) -> AsyncIterator[Stack]:
    """A runstream that does not wait long for its store."""
    hasty = {"request_timeout_seconds": 0.3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "CLAIM_PATIENCE_SECONDS", 0.1)
        async with stack_running(
            nats_url, broker=hasty, gateway={"open_seconds": 0.3, "read_patience_seconds": 1}
        ) as made:
            yield made


@pytest_asyncio.fixture(scope="module")
async def things(stack: Stack) -> Things:
    """What there is."""
    conversation_id = await stack.conversation()
    async with stack.say_in(conversation_id, {"chunks": 1}) as stream:
        events = await stream.rest()
    return Things(str(events[0].json["run_id"]), conversation_id, new_agent_id())


@contextmanager
def faulty(monkeypatch: pytest.MonkeyPatch, fault: Callable[[], Exception]) -> Iterator[None]:
    """Let whatever the poisoned request asks of NATS fail, and nothing else."""

    def failing(call: Any) -> Any:
        @functools.wraps(call)
        async def asked(*args: Any, **options: Any) -> Any:
            if structlog.contextvars.get_contextvars().get("request_id") == POISONED:
                raise fault()
            return await call(*args, **options)

        return asked

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "CONTEST_SECONDS", 0.1)
        patch.setattr(bucket, "CONTENDED_SECONDS", 0.1)
        for name in ASKED:
            patch.setattr(JetStream, name, failing(getattr(JetStream, name)))
        yield


async def ask(stack: Stack, operation: Operation, things: Things) -> Reply:
    """Send the poisoned request, which would be served if nothing failed."""
    is_ingest = operation.path.startswith("/ingest/")
    base = stack.broker_base if is_ingest else stack.base
    path = (operation.path + QUERIES.get(operation.name, "")).format(**things._asdict())
    headers = {"X-Request-ID": POISONED}
    if not operation.bodies:
        return await fetch(base, operation.method, path, headers=headers)
    if path.endswith("/chunks"):
        return await fetch(base, "POST", path, body=b"{}\n", headers={**headers, **NDJSON})
    name = getattr(operation.bodies[0].shapes[0], "__name__", "")
    body = BODIES.get(name, {} if things.agent_id in path else {"agent_id": things.agent_id})
    if "input" in body:
        body = message({"chunks": 1})
    return await fetch(base, operation.method, path, json=body, headers=headers)


@pytest.mark.parametrize("operation", ALL, ids=lambda operation: operation.name)
async def test_a_fault_is_told_without_what_is_inside(
    stack: Stack, things: Things, monkeypatch: pytest.MonkeyPatch, operation: Operation
) -> None:
    """Of any kind: no subject, no text of NATS's, no trace, no other run; of a defect a reference, and that is all."""
    for kind, fault in FAULTS.items():
        with faulty(monkeypatch, fault):
            reply = await ask(stack, operation, things)
        said = reply.body.decode()
        inside = FAILED if operation.name == FOR_OPERATORS else INSIDE
        assert not inside.search(said), (kind, reply)
        assert SECRET_RUN not in said, (kind, reply)
        assert not INSIDE.search(str(reply.headers)), (kind, reply)
        assert reply.status >= 500 or kind not in DEFECTS or operation.name in NEED_NOTHING, (kind, reply)
        if reply.status >= 500:
            assert GENERIC.fullmatch(reply.detail), (kind, reply)
            assert {*reply.json} <= {"detail", "reference", "run_id", "error_type"}, (kind, reply)
