"""What NATS refuses, as the log has it."""

from structlog.testing import capture_logs

from runstream.broker.refusals import MOST_KEPT, Refusals


def refusal(subject: str, action: str = "publish") -> str:
    return f'nats: permissions violation for {action} to "{subject}"'


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


def test_what_was_allowed_in_between_is_logged_when_it_is_refused_again() -> None:
    """An answer shows that a refusal was taken back; on the same connection it may come again, and is news."""
    refusals = Refusals("gateway")
    with capture_logs() as logs:
        for _ in range(2):
            refusals.note(refusal("$js.api.info"), ["$JS.API.INFO"])
            refusals.note(refusal("_inbox.abc.>", "subscription"), ())
            refusals.answered("$JS.API.STREAM.NAMES", "_OTHER")
            assert refusals.publishing("$JS.API.INFO")
            assert refusals.hearing("_INBOX")
            refusals.answered("$JS.API.INFO", "_INBOX")
            assert not refusals.publishing("$JS.API.INFO")
            assert not refusals.hearing()
    assert [(line["action"], line["subject"]) for line in logs] == [
        ("publish", "$JS.API.INFO"),
        ("subscribe", "_inbox.abc.>"),
    ] * 2


def test_a_subscription_that_is_tried_again_and_refused_again_is_logged_once() -> None:
    """Nobody says that it is allowed by now, so that it is tried now and then: that it still is not is no news."""
    refusals = Refusals("broker")
    with capture_logs() as logs:
        for _ in range(3):
            refusals.note(refusal("live.0.>", "subscription"), ())
            refusals.forget("live.0.>")
        assert len(logs) == 1
        refusals.heard("live.0.>")
        refusals.note(refusal("live.0.>", "subscription"), ())
    assert len(logs) == 2


def test_the_refusals_that_are_kept_are_bounded() -> None:
    """Each run has a subject of its own: a user who may write none of them makes no process grow, nor its log."""
    refusals = Refusals("gateway")
    with capture_logs() as logs:
        for number in range(2 * MOST_KEPT):
            refusals.note(refusal(f"runs.{number}", "subscription"), ())
            refusals.forget(f"runs.{number}")
    assert len(logs) == MOST_KEPT
