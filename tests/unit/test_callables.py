"""The agents that are Python callables: found by name, or refused in words that say what is wrong."""

import functools
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from structlog.testing import capture_logs

from runstream.broker.agents.callables import callable_agent
from runstream.broker.agents.failures import outcome_of
from runstream.broker.agents.loading import agent_source
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.errors import AgentFailed, InvalidAgent, Unavailable
from runstream.schemas import Chunk, RunRequest, StopReason, new_agent_id, new_run_id


async def nothing() -> AsyncGenerator[Chunk, None]:
    yield StopReason(stop_reason="end_turn")


async def two(request: RunRequest, other: str) -> AsyncGenerator[Chunk, None]:
    yield StopReason(stop_reason=f"{request.body['input']} {other}")


async def by_name(*, request: RunRequest) -> AsyncGenerator[Chunk, None]:
    yield StopReason(stop_reason=str(request.body["input"]))


REQUEST = RunRequest(run_id=new_run_id(), agent_id=new_agent_id(), body={"input": "hello"})


async def answer(request: RunRequest) -> AsyncGenerator[Chunk, None]:
    yield StopReason(stop_reason=str(request.body["input"]))


async def with_options(request: RunRequest, *, said: str) -> AsyncGenerator[Chunk, None]:
    yield StopReason(stop_reason=f"{request.body['input']} {said}")


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def awaits(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


class Platform:
    async def __call__(self, request: RunRequest) -> AsyncGenerator[Chunk, None]:
        yield StopReason(stop_reason=f"{request.body['input']} called")

    async def method(self, request: RunRequest) -> AsyncGenerator[Chunk, None]:
        yield StopReason(stop_reason=f"{request.body['input']} method")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("a_platform")
    monkeypatch.setitem(sys.modules, "a_platform", made)
    return made


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (answer, "hello"),
        (functools.partial(with_options, said="there"), "hello there"),
        (decorated(answer), "hello"),
        (Platform(), "hello called"),
        (Platform().method, "hello method"),
    ],
    ids=["function", "partial", "decorated", "object", "method"],
)
async def test_whatever_gives_an_async_generator_is_an_agent(module: ModuleType, found: Any, said: str) -> None:
    """A function, or anything else that behaves like one when it is called."""
    module.__dict__["answers"] = found
    chunks = [chunk async for chunk in callable_agent("a_platform:answers")(REQUEST)]
    assert chunks == [StopReason(stop_reason=said)]


async def test_a_name_may_have_dots(module: ModuleType) -> None:
    """An attribute of an attribute is found, too."""
    module.__dict__["platform"] = Platform()
    chunks = [chunk async for chunk in callable_agent("a_platform:platform.method")(REQUEST)]
    assert chunks == [StopReason(stop_reason="hello method")]


async def coroutine(request: RunRequest) -> Chunk:
    return StopReason(stop_reason=request.run_id)


def generator(request: RunRequest) -> Iterator[Chunk]:
    yield StopReason(stop_reason=request.run_id)


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (coroutine, "is a coroutine function: it returns and does not yield; an agent is an async generator function"),
        (generator, "is a generator function that is not async"),
        (repr, "is no generator function"),
        (Platform, "is a class"),
        ({"an": "agent"}, "is dict, and cannot be called"),
        (awaits(answer), "is a coroutine function"),
        (nothing, r"answers\(\).* cannot be called with a run request alone"),
        (two, "missing a required argument: 'other'.*exactly one argument"),
        (by_name, "too many positional arguments"),
        (Platform.method, "missing a required argument: 'request'"),
    ],
)
def test_what_is_no_agent_is_refused_in_words(module: ModuleType, found: Any, complaint: str) -> None:
    """Before anything starts, it is said what was found there."""
    module.__dict__["answers"] = found
    with pytest.raises(InvalidAgent, match=complaint):
        callable_agent("a_platform:answers")


@pytest.mark.parametrize(
    ("source", "spec", "complaint"),
    [
        ("", "the_module:answer", "'the_module' has no 'answer'"),
        ("import no_such_library", "the_module:answer", "importing 'the_module' failed: No module named 'no_such_l"),
        ("1 / 0", "the_module:answer", r"importing 'the_module' failed: ZeroDivisionError\('division by zero'\)"),
        ("raise SystemExit(7)", "the_module:answer", r"importing 'the_module' failed: SystemExit\(7\)"),
        (
            "def __getattr__(_): raise RuntimeError",
            "the_module:answer",
            r"looking for 'answer' failed: RuntimeError\(\)",
        ),
        ("", "another_module:answer", "there is no module 'another_module' on PYTHONPATH"),
        ("", "the_module.part:answer", "importing 'the_module.part' failed|there is no module 'the_module.part'"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, spec: str, complaint: str
) -> None:
    """It is said whether the module is absent, or is there and fails."""
    (tmp_path / "the_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "the_module", raising=False)
    with pytest.raises(InvalidAgent, match=complaint):
        callable_agent(spec)
    sys.modules.pop("the_module", None)


@pytest.mark.parametrize("spec", ["demo2", "", "/a/path", "./agent.py:answer", "ftp://host/agent"])
def test_what_names_no_agent_is_told_what_would(spec: str) -> None:
    """Somebody who mistypes it learns what there is."""
    with pytest.raises(InvalidAgent, match=r"There is no agent .*: give demo"):
        agent_source(spec, UpstreamSettings())


def test_an_address_is_told_how_to_be_a_platform() -> None:
    """Host and port are no module and callable."""
    with pytest.raises(InvalidAgent, match="Then write http://localhost:8000"):
        agent_source("localhost:8000", UpstreamSettings())


SECRET = "hunter2"


class ProviderError(Exception):
    """As clients of model providers raise it."""

    def __init__(self, status_code: int) -> None:
        self.status_code = status_code
        super().__init__(f"Error code: {status_code}")


class Response:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class StatusError(Exception):
    """As clients of HTTP raise it."""

    def __init__(self, status_code: int) -> None:
        self.response = Response(status_code)


class ReadTimeout(Exception):  # so do they call it
    """As clients of HTTP raise it."""


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (AgentFailed("of_its_own"), "of_its_own"),
        (ProviderError(429), "llm_rate_limit"),
        (ProviderError(401), "llm_authentication"),
        (ProviderError(403), "llm_authentication"),
        (ProviderError(408), "llm_timeout"),
        (ProviderError(504), "llm_timeout"),
        (ProviderError(500), "llm_error"),
        (ProviderError(599), "llm_error"),
        (ProviderError(200), "internal_error"),
        (StatusError(429), "llm_rate_limit"),
        (StatusError(502), "llm_error"),
        (ReadTimeout(), "llm_timeout"),
        (TimeoutError(), "llm_timeout"),
        (KeyError("a defect"), "internal_error"),
    ],
    ids=repr,
)
def test_what_an_agent_raises_becomes_an_error_type(error: Exception, error_type: str) -> None:
    """So that a client knows whether it makes sense to try again."""
    outcome = outcome_of(error, REQUEST.run_id)
    assert outcome.error is not None
    assert outcome.error.error_type == error_type
    assert outcome.error.run_id == REQUEST.run_id


@pytest.mark.parametrize(
    "error", [ProviderError(401), ValueError(SECRET), ReadTimeout(SECRET), Unavailable(SECRET)], ids=repr
)
def test_what_an_exception_says_is_logged_and_told_to_no_client(error: Exception) -> None:
    """It was not written for one: the log has it, with the run and where it came from."""
    with capture_logs() as logs:
        outcome = outcome_of(error, REQUEST.run_id)
    assert outcome.error is not None
    assert outcome.error.detail is None
    assert str(error) not in outcome.error.message
    (said,) = logs
    assert (said["run_id"], said["exc_info"]) == (REQUEST.run_id, error)


def test_what_an_agent_fails_with_is_told() -> None:
    """Who raises `AgentFailed` speaks to the client, who is shown it and nothing else."""
    with capture_logs() as logs:
        outcome = outcome_of(AgentFailed("quota", message="No more today.", detail="Ask tomorrow."), REQUEST.run_id)
    assert outcome.error is not None
    assert (outcome.error.message, outcome.error.detail, logs) == ("No more today.", "Ask tomorrow.", [])
