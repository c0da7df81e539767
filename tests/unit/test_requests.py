"""Bodies are refused in the reference's words, and read for what they say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from runstream.schemas import (
    DEFAULT_BATCH_SIZE,
    MAX_OTID_CHARACTERS,
    MAX_OTIDS,
    MAX_SEQ_ID,
    AgentMessagesRequest,
    AgentStreamRequest,
    Approval,
    ApprovalCreate,
    CancelRequest,
    ConversationMessagesRequest,
    CreateConversationRequest,
    CreateMessagesRequest,
    MessageCreate,
    RequestConfig,
    RetrieveStreamRequest,
    ToolReturnCreate,
    UpdateConversationRequest,
    approvals_in,
    carries_approval,
    last_user_text,
)

MATRIX = Path(__file__).parents[1] / "contract" / "captures" / "errors_matrix.txt"
CREATE_MODELS: list[type[CreateMessagesRequest]] = [
    AgentStreamRequest,
    AgentMessagesRequest,
    ConversationMessagesRequest,
]
USER = {"role": "user", "content": "x"}


def captured_details() -> dict[str, str]:
    """The `detail` of each captured refusal, by the name of its case."""
    cases = re.findall(r"^### (.+)\n(\{.*\})\n\[http 422", MATRIX.read_text(), flags=re.MULTILINE)
    return {name: json.loads(body)["detail"] for name, body in cases}


def refusal(model: type[BaseModel], body: Any) -> list[Any]:
    """The errors as the gateway shows them."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    errors = caught.value.errors(include_url=False)
    return [{**error, "loc": ("body", *error["loc"])} for error in errors]


@pytest.mark.parametrize(
    ("case", "model", "body"),
    [
        ("stream starting_after null", RetrieveStreamRequest, {"starting_after": None}),
        ("stream starting_after str", RetrieveStreamRequest, {"starting_after": "abc"}),
        ("stream starting_after 1.5", RetrieveStreamRequest, {"starting_after": 1.5}),
        ("stream body array", RetrieveStreamRequest, []),
        ("stream form ct", RetrieveStreamRequest, b"{}"),
        ("create empty body obj", AgentStreamRequest, {}),
        ("create both", AgentStreamRequest, {"input": "x", "messages": [{**USER, "type": "message"}]}),
    ],
)
def test_a_body_is_refused_in_the_references_words(case: str, model: type[BaseModel], body: Any) -> None:
    """The errors, written as Python writes them, are the captured `detail` letter by letter."""
    assert str(refusal(model, body)) == captured_details()[case]


def test_a_stream_is_asked_for_with_nothing_at_all() -> None:
    """Everything has a default, and what nobody knows is ignored."""
    request = RetrieveStreamRequest.model_validate({"unknown": 1})
    assert request == RetrieveStreamRequest()
    assert (request.run_id, request.otid, request.agent_id) == (None, None, None)
    assert (request.cursor, request.include_pings, request.batch_size) == (0, True, 100)


@pytest.mark.parametrize(
    ("given", "cursor"),
    [(0, 0), (7, 7), ("3", 3), (4.0, 4), (-1, 0), (-(2**80), 0), (MAX_SEQ_ID, MAX_SEQ_ID)],
)
def test_a_cursor_is_a_whole_number_from_zero(given: Any, cursor: int) -> None:
    """Text that is a number counts as one, and a negative number means from the start."""
    assert RetrieveStreamRequest.model_validate({"starting_after": given}).cursor == cursor


@pytest.mark.parametrize("given", [2**53, 2**80, str(2**53)])
def test_a_cursor_that_javascript_could_not_hold_is_refused(given: Any) -> None:
    """Above 2^53-1 no sequence is ever issued, and two numbers may look the same."""
    [error] = refusal(RetrieveStreamRequest, {"starting_after": given})
    assert (error["type"], error["loc"]) == ("less_than_equal", ("body", "starting_after"))


@pytest.mark.parametrize(("given", "on"), [(None, False), (False, False), (True, True), ("true", True)])
def test_null_turns_pings_off(given: Any, on: bool) -> None:
    """As in the reference, only leaving it out means on."""
    assert RetrieveStreamRequest.model_validate({"include_pings": given}).include_pings is on


@pytest.mark.parametrize("given", [None, 0, -5, "0"])
def test_a_batch_of_nothing_is_the_default(given: Any) -> None:
    """The reference answers 500, hangs or livelocks; here it is the default."""
    assert RetrieveStreamRequest.model_validate({"batch_size": given}).batch_size == DEFAULT_BATCH_SIZE
    assert RetrieveStreamRequest.model_validate({"batch_size": 7}).batch_size == 7


@pytest.mark.parametrize("given", [None, 0, -1, 0.5, "2"])
def test_a_poll_interval_changes_nothing(given: Any) -> None:
    """It is accepted, null included, and nothing polls."""
    assert RetrieveStreamRequest.model_validate({"poll_interval": given}).cursor == 0


def test_an_empty_id_is_an_absent_id() -> None:
    """`""` for run_id or otid means: look for the active run."""
    request = RetrieveStreamRequest.model_validate({"run_id": "", "otid": ""})
    assert (request.run_id, request.otid) == (None, None)


@pytest.mark.parametrize("model", CREATE_MODELS)
def test_input_or_messages_make_a_request(model: type[CreateMessagesRequest]) -> None:
    """Either will do; no messages at all is left to the gateway, which has other words for it."""
    assert not model.model_validate({"input": "x"}).messages_are_empty
    assert not model.model_validate({"input": [{"type": "text", "text": "x"}]}).messages_are_empty
    assert not model.model_validate({"messages": [USER], "input": None}).messages_are_empty
    assert model.model_validate({"messages": []}).messages_are_empty
    [error] = refusal(model, {"input": None, "messages": None})
    assert error["msg"] == "Value error, Must specify either 'input' or 'messages'."


def test_a_request_has_the_references_defaults() -> None:
    """What a client leaves out is as the reference has it."""
    request = AgentMessagesRequest.model_validate({"input": "x", "unknown": 1})
    assert (request.background, request.include_pings, request.stream_tokens) == (False, True, False)
    assert (request.max_steps, request.override_system) == (50, None)
    assert request.request_config == RequestConfig()


def test_each_endpoint_streams_in_its_own_way() -> None:
    """One always, one unless told not to, one only when told to."""
    for given, always, agent, conversation in [
        ({}, True, False, True),
        ({"streaming": False}, True, False, False),
        ({"streaming": True}, True, True, True),
    ]:
        body = {"input": "x", **given}
        assert AgentStreamRequest.model_validate(body).streaming is always
        assert AgentMessagesRequest.model_validate(body).streaming is agent
        assert ConversationMessagesRequest.model_validate(body).streaming is conversation


def test_system_is_another_name_for_override_system() -> None:
    """The older name still works, and the newer one wins."""
    assert AgentStreamRequest.model_validate({"input": "x", "system": "s"}).override_system == "s"
    both = {"input": "x", "system": "s", "override_system": "o"}
    assert AgentStreamRequest.model_validate(both).override_system == "o"


def test_every_parameter_of_the_client_is_understood() -> None:
    """The values letta-client's types allow are accepted, and the run's record keeps its part."""
    body = {
        "input": [{"type": "image", "source": {"type": "url", "url": "u"}}, {"type": "text", "text": "x"}],
        "background": True,
        "client_skills": [{"name": "n", "description": "d", "location": "l"}],
        "client_tools": [{"name": "n", "parameters": {"type": "object"}}],
        "enable_thinking": "true",
        "include_compaction_messages": True,
        "include_return_message_types": ["assistant_message"],
        "max_steps": 3,
        "override_model": "a/b",
        "return_logprobs": True,
        "return_token_ids": True,
        "stream_tokens": True,
        "top_logprobs": 2,
        "use_assistant_message": False,
        "assistant_message_tool_name": "say",
        "assistant_message_tool_kwarg": "words",
    }
    request = ConversationMessagesRequest.model_validate({**body, "agent_id": "agent"})
    assert {name: value for name, value in request.model_dump(mode="json").items() if name in body} == {
        **body,
        "input": [{"type": "image", "text": None}, {"type": "text", "text": "x"}],
        "client_tools": [{"name": "n", "description": None, "parameters": {"type": "object"}}],
    }
    assert request.agent_id == "agent"
    assert request.request_config == RequestConfig(
        use_assistant_message=False,
        assistant_message_tool_name="say",
        assistant_message_tool_kwarg="words",
        include_return_message_types=["assistant_message"],
    )


def test_an_unknown_message_type_cannot_be_filtered_by() -> None:
    """The names are listed where one is refused."""
    [error] = refusal(AgentStreamRequest, {"input": "x", "include_return_message_types": ["ping"]})
    assert error["loc"] == ("body", "include_return_message_types", 0)
    assert "'assistant_message'" in error["msg"]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (USER, MessageCreate),
        ({**USER, "type": "message"}, MessageCreate),
        ({**USER, "type": None}, MessageCreate),
        ({"role": "system", "content": [{"text": "x"}]}, MessageCreate),
        ({"type": "approval"}, ApprovalCreate),
        ({"approve": False, "approval_request_id": "message-1", "reason": "no"}, ApprovalCreate),
        ({"approvals": [{"approve": True, "tool_call_id": "c"}]}, ApprovalCreate),
        (
            {
                "type": "approval",
                "approvals": [{"type": "tool", "tool_call_id": "c", "status": "error", "tool_return": "r"}],
            },
            ApprovalCreate,
        ),
        (
            {"tool_returns": [{"tool_call_id": "c", "status": "success", "tool_return": "r"}]},
            ToolReturnCreate,
        ),
        ({"type": "tool_return", "tool_returns": []}, ToolReturnCreate),
    ],
)
def test_a_message_is_what_its_type_or_its_fields_say(message: dict[str, Any], kind: type) -> None:
    """Newer clients name the type; older ones leave it to the fields."""
    request = AgentMessagesRequest.model_validate({"messages": [message]})
    assert [type(each) for each in request.messages or ()] == [kind]


@pytest.mark.parametrize(
    ("message", "location", "error_type"),
    [
        ({"role": "tool", "content": "x"}, ("message", "role"), "literal_error"),
        ({"role": "user"}, ("message", "content"), "missing"),
        ({"type": "zzz"}, (), "unknown_type"),
        ("text", ("message",), "model_attributes_type"),
        ({"type": "tool_return"}, ("tool_return", "tool_returns"), "missing"),
        (
            {"approvals": [{"approve": True}]},
            ("approval", "approvals", 0, "approval", "tool_call_id"),
            "missing",
        ),
        ({"approvals": [{"type": "zzz"}]}, ("approval", "approvals", 0), "unknown_type"),
    ],
)
def test_a_bad_message_is_told_where_it_is_bad(message: Any, location: tuple[Any, ...], error_type: str) -> None:
    """One error, at the field, of the one kind of message it was meant to be."""
    [error] = refusal(AgentMessagesRequest, {"messages": [USER, message]})
    assert (error["loc"], error["type"]) == (("body", "messages", 1, *location), error_type)


def test_the_clients_otids_are_its_own_in_order() -> None:
    """None is made up for a message that has none, and the empty one is none."""
    messages = [
        {**USER, "otid": "b"},
        USER,
        {"type": "approval", "otid": "a"},
        {**USER, "otid": ""},
        {"type": "tool_return", "tool_returns": [], "otid": "c"},
    ]
    request = ConversationMessagesRequest.model_validate({"messages": messages})
    assert request.client_otids == ["b", "a", "c"]
    assert ConversationMessagesRequest.model_validate({"input": "x"}).client_otids == []


@pytest.mark.parametrize(
    ("otids", "words"),
    [
        (["a", "b", "a"], "'a' is there twice"),
        ([str(number) for number in range(MAX_OTIDS + 1)], f"at most {MAX_OTIDS} otids"),
        (["a" * (MAX_OTID_CHARACTERS + 1)], f"at most {MAX_OTID_CHARACTERS} characters"),
    ],
)
def test_otids_are_few_short_and_different(otids: list[str], words: str) -> None:
    """They become keys, all of them in one batch."""
    [error] = refusal(AgentStreamRequest, {"messages": [{**USER, "otid": otid} for otid in otids]})
    assert (error["type"], error["loc"]) == ("value_error", ("body",))
    assert words in error["msg"]


def test_as_many_otids_as_allowed_are_allowed() -> None:
    """The bounds themselves are inside."""
    otids = [f"{number:0{MAX_OTID_CHARACTERS}}" for number in range(MAX_OTIDS)]
    body = {"messages": [{**USER, "otid": otid} for otid in otids]}
    assert AgentStreamRequest.model_validate(body).client_otids == otids


def test_a_conversation_keeps_what_it_does_not_know() -> None:
    """The agent may be in the body, as older clients send it; unknown fields are kept for the client."""
    body = {"agent_id": "a", "summary": "s", "model_settings": {"x": 1}, "hidden": True, "unknown": {"y": 2}}
    request = CreateConversationRequest.model_validate(body)
    assert (request.agent_id, request.summary, request.model_settings) == ("a", "s", {"x": 1})
    assert request.unknown == {"hidden": True, "unknown": {"y": 2}}
    assert CreateConversationRequest.model_validate({}).agent_id is None


def test_an_update_says_which_fields_were_sent() -> None:
    """Null is a value; what is absent stays as it is."""
    body = {"archived": True, "summary": None, "last_message_at": "2026-11-21T04:28:00.034113Z"}
    request = UpdateConversationRequest.model_validate(body)
    assert request.model_fields_set == set(body)
    assert request.last_message_at is not None
    assert request.last_message_at.isoformat() == "2026-11-21T04:28:00.034113+00:00"


def test_a_cancel_may_name_runs() -> None:
    """Without names it is the latest."""
    assert CancelRequest.model_validate({}).run_ids is None
    assert CancelRequest.model_validate({"run_ids": ["r"]}).run_ids == ["r"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"input": "hello"}, "hello"),
        ({"input": ""}, ""),
        ({"input": [{"type": "image"}, {"type": "text", "text": "a"}, {"text": "b"}]}, "a"),
        ({"input": [{"text": "untyped"}]}, "untyped"),
        ({"input": [{"type": "image"}], "messages": [USER]}, None),
        ({"input": None, "messages": [USER]}, "x"),
        (
            {"messages": [USER, {"role": "user", "content": "last"}, {"role": "system", "content": "s"}]},
            "last",
        ),
        ({"messages": [USER, {"approve": True, "approval_request_id": "m"}]}, "x"),
        ({"messages": [USER, {"role": "user", "content": []}]}, None),
        ({"messages": []}, None),
        ({"messages": "nonsense"}, None),
        ({"messages": [None, 3, "x", {"role": "user"}]}, None),
        ({"input": 7}, None),
        ({}, None),
    ],
)
def test_the_last_thing_the_user_said_is_found(body: dict[str, Any], text: str | None) -> None:
    """In the input, or in the last user message: all of it, or its first text part."""
    assert last_user_text(body) == text


@pytest.mark.parametrize(
    ("message", "approvals"),
    [
        (
            {"approve": True, "approval_request_id": "m", "reason": "fine"},
            [Approval("m", approved=True, reason="fine")],
        ),
        (
            {"type": "approval", "approve": False, "approval_request_id": "m"},
            [Approval("m", approved=False)],
        ),
        (
            {
                "type": "approval",
                "approvals": [
                    {"type": "approval", "tool_call_id": "a", "approve": False, "reason": "no"},
                    {"tool_call_id": "b", "tool_return": "r", "status": "success"},
                ],
            },
            [Approval("a", approved=False, reason="no"), Approval("b", approved=True, tool_return="r")],
        ),
        (
            {"tool_returns": [{"tool_call_id": "c", "status": "error", "tool_return": [{"text": "t"}]}]},
            [Approval("c", approved=False, tool_return="t")],
        ),
        ({"type": "approval"}, []),
        ({"type": "approval", "approvals": [3, None], "approve": "yes"}, []),
    ],
)
def test_approvals_are_found_in_each_of_their_forms(message: dict[str, Any], approvals: list[Approval]) -> None:
    """The older single answer, a list of answers, and the returns of tools that the client executed."""
    body = {"messages": [USER, message]}
    assert carries_approval(body)
    assert approvals_in(body) == approvals


def test_an_ordinary_request_carries_no_approval() -> None:
    """Not by its input, nor by its messages, nor by nonsense."""
    for body in ({"input": "approve"}, {"messages": [USER]}, {"messages": 3}, {}):
        assert not carries_approval(body)
        assert approvals_in(body) == []
