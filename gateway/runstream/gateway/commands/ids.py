"""Ids as people give them: what cannot be one is refused before a server is asked, which would find nothing there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runstream.gateway.commands.exits import Usage
from runstream.schemas import MAX_SEQ_ID, is_agent_id, is_conversation_id, is_run_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["check_cursor", "check_id", "check_target"]

IDS: Final[Mapping[str, Callable[[str], bool]]] = {
    "run-": is_run_id,
    "conv-": is_conversation_id,
    "agent-": is_agent_id,
}
EXAMPLE: Final = "123e4567-e89b-42d3-8456-426614174000"


def check_id(option: str, prefix: str, said: str | None) -> None:
    """Raise `Usage` for what an option was given that is no id with this prefix; None: it was not given."""
    if said is not None and not IDS[prefix](said):
        raise Usage(f"{option} takes a whole id, such as {prefix}{EXAMPLE}: {said!r} is none.")


def check_target(said: str) -> None:
    """Raise `Usage` for what is the id of no run, conversation or agent."""
    prefix = next(filter(said.startswith, IDS), None)
    if prefix is None:
        raise Usage(f"Name a run (run-…), a conversation (conv-…) or an agent (agent-…): {said!r} is none.")
    if not IDS[prefix](said):
        raise Usage(
            f"{said!r} is not a whole id, such as {prefix}{EXAMPLE}: `runstream runs` lists them, and in the console "
            "a run's stands above its page."
        )


def check_cursor(option: str, said: int) -> None:
    """Raise `Usage` for what no `seq_id` can be."""
    if said > MAX_SEQ_ID:
        raise Usage(f"{option} takes a seq_id, which is {MAX_SEQ_ID} at most: {said} is none.")
