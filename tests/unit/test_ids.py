"""Ids look as the reference's do, and nothing else passes for one."""

import pkgutil
from collections.abc import Callable
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstream import schemas
from runstream.schemas import (
    AGENT_PATH,
    CONVERSATION_PATH,
    DEFAULT_USER_ID,
    STRICT_CONVERSATION_PATH,
    PathPattern,
    is_agent_id,
    is_conversation_id,
    is_run_id,
    is_user_id,
    new_agent_id,
    new_conversation_id,
    new_message_id,
    new_otid,
    new_ping_id,
    new_run_id,
    new_step_id,
)

UUID4 = "123e4567-e89b-42d3-8456-426614174000"
NOT_UUID4 = [
    UUID4.upper(),
    "123e4567-e89b-12d3-a456-426614174000",  # version 1
    "123e4567-e89b-42d3-c456-426614174000",  # another variant
    UUID4.replace("-", ""),
    f"{UUID4}0",
    f"{UUID4}\n",
    f" {UUID4}",
    "",
]


@pytest.mark.parametrize(
    ("make", "prefix"),
    [
        (new_run_id, "run-"),
        (new_conversation_id, "conv-"),
        (new_agent_id, "agent-"),
        (new_message_id, "message-"),
        (new_step_id, "step-"),
        (new_ping_id, "ping-"),
        (new_otid, ""),
    ],
)
def test_a_made_id_is_its_prefix_and_a_random_uuid(make: Callable[[], str], prefix: str) -> None:
    """Each maker gives a fresh version 4 UUID in lower case behind its prefix."""
    made = make()
    assert made.startswith(prefix)
    uuid = UUID(made.removeprefix(prefix))
    assert (uuid.version, f"{prefix}{uuid}") == (4, made)
    assert make() != made


@pytest.mark.parametrize(
    ("is_id", "prefix"),
    [(is_run_id, "run-"), (is_conversation_id, "conv-"), (is_agent_id, "agent-"), (is_user_id, "user-")],
)
def test_an_id_is_recognised_by_all_of_it(is_id: Callable[[str], bool], prefix: str) -> None:
    """The prefix and a lower-case version 4 UUID, and nothing before, between or after."""
    assert is_id(f"{prefix}{UUID4}")
    assert not [other for other in NOT_UUID4 if is_id(f"{prefix}{other}")]
    assert not [other for other in ("run-", "conv-", "agent-", "user-") if other != prefix and is_id(other + UUID4)]
    assert not is_id(UUID4)
    assert not is_id(f"x{prefix}{UUID4}")


def test_the_default_user_has_a_users_id() -> None:
    """What conversations name as their maker is well-formed."""
    assert is_user_id(DEFAULT_USER_ID)


@pytest.mark.parametrize(
    ("pattern", "matching"),
    [
        (CONVERSATION_PATH, ["default", f"conv-{UUID4}", f"agent-{UUID4}"]),
        (STRICT_CONVERSATION_PATH, [f"conv-{UUID4}"]),
        (AGENT_PATH, [f"agent-{UUID4}"]),
    ],
)
def test_a_path_takes_the_ids_of_its_place(pattern: PathPattern, matching: list[str]) -> None:
    """A stream may be asked for by default, conversation or agent; a conversation is read by its id alone."""
    candidates = ["default", f"conv-{UUID4}", f"agent-{UUID4}", f"run-{UUID4}", "DEFAULT", "default\n", ""]
    assert [each for each in candidates if pattern.matches(each)] == matching
    assert all(pattern.min_length <= len(each) <= pattern.max_length for each in matching)


def test_path_patterns_and_lengths_are_the_references() -> None:
    """They stand in the errors clients are shown, so they are compared letter by letter."""
    uuid4 = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert (f"^(default|conv-{uuid4}|agent-{uuid4})$", 1, 42) == CONVERSATION_PATH
    assert (f"^conv-{uuid4}$", 41, 41) == STRICT_CONVERSATION_PATH
    assert (f"^agent-{uuid4}$", 42, 42) == AGENT_PATH


@given(st.text(max_size=60))
def test_no_other_text_is_an_id(text: str) -> None:
    """Arbitrary text is never taken for an id, and never upsets the matchers."""
    assert not any(is_id(text) for is_id in (is_run_id, is_conversation_id, is_agent_id, is_user_id))


def test_the_package_exports_what_its_modules_do() -> None:
    """Public means listed: in the module, and in the package."""
    modules = [module.name for module in pkgutil.iter_modules(schemas.__path__)]
    listed = [name for module in modules for name in getattr(schemas, module).__all__]
    assert sorted(schemas.__all__) == sorted(listed)
    assert all(hasattr(schemas, name) for name in listed)
