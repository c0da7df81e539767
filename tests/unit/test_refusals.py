"""What NATS refuses, as the log has it."""

from structlog.testing import capture_logs

from runstream.broker.refusals import Refusals


def refusal(subject: str) -> str:
    return f'nats: permissions violation for publish to "{subject}"'


def test_what_is_tried_again_under_another_name_is_logged_once() -> None:
    """Who may make no consumer tries one of another name every few seconds; on a new connection it is said again."""
    refusals = Refusals("gateway")
    subjects = [f"$js.api.consumer.create.kv_runstream.{number:016x}" for number in range(3)]
    with capture_logs() as logs:
        assert [refusals.note(refusal(subject), ()) for subject in subjects] == subjects
        assert all(map(refusals.publishing, subjects))
        refusals.note(refusal("$js.api.info"), ())
        refusals.clear()
        refusals.note(refusal(subjects[0]), ())
    assert [line["subject"] for line in logs] == [subjects[0], "$js.api.info", subjects[0]]
