"""An agent that is a Python callable: `module:name`, an async generator function that takes the run request.

It runs in the broker's own event loop, beside the other runs: code that blocks blocks them all.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from runstream.broker.errors import InvalidAgent

if TYPE_CHECKING:
    from runstream.broker.agents import Agent

__all__ = ["callable_agent"]


def callable_agent(spec: str) -> Agent:
    """Import the agent that `module:name` names. Raises `InvalidAgent`, which says what is wrong with it."""
    module_name, _, path = spec.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise InvalidAgent(f"{spec}: importing {module_name!r} failed: {error}.") from error
        raise InvalidAgent(
            f"{spec}: there is no module {error.name!r} on PYTHONPATH, nor installed beside runstream."
        ) from error
    except (Exception, SystemExit) as error:
        raise InvalidAgent(f"{spec}: importing {module_name!r} failed: {error!r}.") from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise InvalidAgent(f"{spec}: {module_name!r} has no {path!r}.") from error
        except Exception as error:
            raise InvalidAgent(f"{spec}: looking for {path!r} failed: {error!r}.") from error
    if not _is_agent(found):
        raise InvalidAgent(f"{spec} {_complaint(found)}; an agent is an async generator function: async def … yield.")
    _check_signature(spec, found)
    agent: Agent = found
    return agent


def _is_agent(found: Any) -> bool:
    """Whether calling `found` gives an async generator: a function, a partial, a method, or an object's `__call__`."""
    if not callable(found) or inspect.isclass(found) or inspect.iscoroutinefunction(found):
        return False
    called = inspect.unwrap(found)
    return inspect.isasyncgenfunction(called) or inspect.isasyncgenfunction(type(called).__call__)


def _check_signature(spec: str, found: Any) -> None:
    """Raise `InvalidAgent` if it cannot be called with a run request alone."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return  # It has none that could be looked at.
    try:
        signature.bind(object())
    except TypeError as error:
        raise InvalidAgent(
            f"{spec}{signature} cannot be called with a run request alone ({error}): it takes exactly one argument."
        ) from error


def _complaint(found: Any) -> str:
    """Say what `found` is in place of an agent."""
    if inspect.isclass(found):
        return "is a class"
    if not callable(found):
        return f"is {type(found).__name__}, and cannot be called"
    if inspect.iscoroutinefunction(found):
        return "is a coroutine function: it returns and does not yield"
    if inspect.isgeneratorfunction(found):
        return "is a generator function that is not async"
    return "is no generator function"
