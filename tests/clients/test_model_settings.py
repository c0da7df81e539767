"""What a client keeps in a conversation's `model_settings`: any provider's, as it was set, unknown keys included."""

from typing import Any

import pytest
from letta_client import AsyncLetta
from letta_client.types import Conversation

from runstream.schemas import new_agent_id

COMMON = {"max_output_tokens": 4096, "temperature": 0.7, "parallel_tool_calls": False}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}

FORMS: dict[str, dict[str, Any]] = {
    "openai": {"reasoning": {"reasoning_effort": "high"}, "response_format": {"type": "text"}, "strict": True},
    "sglang": {"reasoning": {"reasoning_effort": "none"}, "tool_call_parser": "glm47", "strict": False},
    "anthropic": {"thinking": {"type": "enabled", "budget_tokens": 2048}, "effort": "high", "verbosity": "low"},
    "google_ai": {
        "thinking_config": {"include_thoughts": True, "thinking_budget": 1024},
        "response_schema": JSON_SCHEMA,
    },
    "google_vertex": {"thinking_config": {"include_thoughts": False}, "response_schema": {"type": "json_object"}},
    "azure": {"response_format": {"type": "json_object"}},
    "xai": {"response_format": JSON_SCHEMA},
    "moonshot": {"response_format": {"type": "text"}, "strict": True},
    "zai": {"thinking": {"type": "disabled", "clear_thinking": False}},
    "moonshot_coding": {"thinking": {"type": "enabled", "budget_tokens": 1024}, "effort": "max"},
    "groq": {"response_format": {"type": "json_object"}},
    "deepseek": {"response_format": {"type": "text"}},
    "together": {"response_format": {"type": "json_object"}},
    "bedrock": {"response_format": {"type": "text"}},
    "baseten": {},
    "openrouter": {"response_format": JSON_SCHEMA},
    "chatgpt_oauth": {"reasoning": {"reasoning_effort": "xhigh"}},
}


@pytest.mark.parametrize("provider", FORMS)
async def test_every_providers_settings_come_back(letta: AsyncLetta, provider: str) -> None:
    """As the client's own type for this provider, in every answer; nothing added, nothing dropped."""
    settings: Any = {"provider_type": provider, **COMMON, **FORMS[provider], "of_tomorrow": {"deep": [1, None]}}
    made = await letta.conversations.create(agent_id=new_agent_id(), model_settings=settings)
    answers: list[Conversation] = [made, await letta.conversations.retrieve(made.id)]
    answers.append(await letta.conversations.update(made.id, summary="the settings stay"))
    other = await letta.conversations.create(agent_id=new_agent_id())
    answers.append(await letta.conversations.update(other.id, model_settings=settings))
    for answer in answers:
        assert answer.api_model_settings is not None
        assert answer.api_model_settings.provider_type == provider
        assert answer.api_model_settings.to_dict() == settings
        if provider in {"openai", "anthropic", "groq"}:
            assert type(answer.api_model_settings).__name__.lower().startswith(provider)
    emptied = await letta.conversations.update(other.id, model_settings=None)
    assert emptied.api_model_settings is None
