"""What can go wrong on the durable side, as one tree.

BrokerError
├── Unavailable                 NATS cannot be reached, or does not answer in time
│   ├── NoResponders            nobody listens to the subject that was asked
│   ├── Refused                 NATS does not let this process ask
│   │   └── NotLetIn            nor in
│   ├── Contended               another write to the same subject is under way: this one was not stored
│   ├── NotSent                 too much is on its way: this was not sent, and not stored
│   ├── StoreUnavailable        a write stayed unanswered for the writer's whole patience
│   ├── Unsettled               whether the claim was stored could not be found out
│   ├── KeysUnavailable         the keys that tokens are checked with could not be fetched
│   └── ViewBehind              what lists are made of does not have what was stored before
├── StoreRefused                JetStream answered, and said no
│   ├── StoreFull               a limit of the stream is reached
│   ├── WrongLastSequence       a compare-and-set lost: the caller decides what that means
│   └── NotStored               the message, stream or consumer asked for is not there
├── Broken                      what is stored is not as runstream writes it
│   ├── BrokenRecord            what stands under a key of the index
│   └── BrokenLog               a message of a run's log
├── Fenced                      another writer has taken the run over
├── RunCancelled                somebody wishes that the run end
├── RunTooLong                  the run's log has room for its ending only
├── ChunkTooLarge               one chunk is larger than a NATS message may be
├── RecordTooLarge              a record is larger than a NATS message may be
│   └── ConversationTooLarge    a conversation leaves no room for the runs that will go on in it
├── RunStuck                    the store has no room for what is left of the run
├── CursorExpired               retention has removed what the cursor asks for
│   └── CursorUnknown           nothing was stored at the cursor yet
├── Conflict                    a claim was refused: the conversation or an otid is taken
├── ConversationDeleted         a claim was refused: the conversation is there no more
├── WrongAgent                  a claim was refused: the conversation is another agent's
├── Unauthenticated             who asks has not shown who that is
├── Forbidden                   what was shown does not allow what is asked for
├── LimitReached                whoever asks has had as much as they may for now
├── Draining                    this process opens no further runs, as it is to stop
├── AgentFailed                 the agent ended with an error of its own
├── InvalidAgent                there is no such agent, or what names it is wrong
├── TopologyError               the streams are absent, or not as configured
│   └── ServerTooOld            nats-server lacks what runstream is built on
├── InvalidSettings             a setting has a value it cannot have
└── EmbeddedServerError         the embedded nats-server does not start

The docstring is the message; facts are attributes. Errors of nats-py are translated where they enter
(`connection.py`, `jetstream.py`), with the original kept as the cause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runstream.broker.auth.causes import Cause

__all__ = [
    "AgentFailed",
    "Broken",
    "BrokenLog",
    "BrokenRecord",
    "BrokerError",
    "ChunkTooLarge",
    "Conflict",
    "Contended",
    "ConversationDeleted",
    "ConversationTooLarge",
    "CursorExpired",
    "CursorUnknown",
    "Draining",
    "EmbeddedServerError",
    "Fenced",
    "Forbidden",
    "InvalidAgent",
    "InvalidSettings",
    "KeysUnavailable",
    "LimitReached",
    "NoResponders",
    "NotLetIn",
    "NotStored",
    "RecordTooLarge",
    "Refused",
    "RunCancelled",
    "RunStuck",
    "RunTooLong",
    "ServerTooOld",
    "StoreFull",
    "StoreRefused",
    "StoreUnavailable",
    "TopologyError",
    "Unauthenticated",
    "Unavailable",
    "Unsettled",
    "ViewBehind",
    "WrongAgent",
    "WrongLastSequence",
]


class BrokerError(Exception):
    """Something went wrong in the broker."""

    is_sure = False
    """Whether it says that something is not there, and leaders have confirmed that (`leaders.py`)."""

    def __init__(self, detail: str = "", **facts: object) -> None:
        self.detail = detail
        self.facts = facts
        super().__init__(detail)

    def __str__(self) -> str:
        message = " ".join((type(self).__doc__ or "").split("\n\n")[0].split())
        facts = ", ".join(f"{name}={value}" for name, value in self.facts.items())
        return " ".join(part for part in (message, self.detail, f"({facts})" if facts else "") if part)


class Unavailable(BrokerError):
    """NATS did not answer in time."""


class NoResponders(Unavailable):
    """Nobody answers."""


class Refused(Unavailable):
    """NATS does not let this process ask: its user lacks a permission."""


class NotLetIn(Refused):
    """NATS refuses this user."""


class Contended(Unavailable):
    """Another write to the same subject is under way."""


class NotSent(Unavailable):
    """It has not been sent, and is not stored: too much is on its way."""


class StoreUnavailable(Unavailable):
    """The log could not be written for as long as its writer may wait."""


class Unsettled(Unavailable):
    """It could not be found out whether the run was started."""


class KeysUnavailable(Unavailable):
    """The keys that tokens are checked with could not be fetched yet."""


class ViewBehind(Unavailable):
    """The view does not have everything yet that was stored before it was asked."""


class StoreRefused(BrokerError):
    """JetStream refused the request."""

    def __init__(self, detail: str = "", *, code: int = 0, **facts: object) -> None:
        self.code = code
        super().__init__(detail, err_code=code, **facts)


class StoreFull(StoreRefused):
    """A limit of the stream is reached."""


class WrongLastSequence(StoreRefused):
    """The subject has moved on since it was read."""


class NotStored(StoreRefused):
    """Nothing is stored under that name."""


class Broken(BrokerError):
    """What is stored cannot be read."""


class BrokenRecord(Broken):
    """What the index holds under this key cannot be read."""

    def __init__(self, detail: str = "", *, is_newer: bool = False, **facts: object) -> None:
        self.is_newer = is_newer
        """Whether a newer runstream wrote it, which can read it."""
        super().__init__(detail, **facts)


class BrokenLog(Broken):
    """A message of the run's log cannot be read."""


class Fenced(BrokerError):
    """Another writer has taken this run over."""


class RunCancelled(BrokerError):
    """This run was cancelled."""


class RunTooLong(BrokerError):
    """This run has as many messages as a run may have."""


class ChunkTooLarge(BrokerError):
    """A chunk is larger than a NATS message may be."""

    def __init__(self, *, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(size=size, limit=limit)


class RecordTooLarge(BrokerError):
    """A record is larger than may be stored."""

    def __init__(self, *, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(size=size, limit=limit)


class ConversationTooLarge(RecordTooLarge):
    """The conversation is larger than a conversation may be."""


class RunStuck(BrokerError):
    """The run can neither go on nor end until there is room in the store."""


class CursorExpired(BrokerError):
    """Part of this run was removed by retention."""


class CursorUnknown(CursorExpired):
    """The cursor lies beyond everything that was stored."""


class Conflict(BrokerError):
    """The claim was refused."""

    def __init__(self, *, run_id: str, otid: str | None, shares_otid: bool, is_repeated: bool = False) -> None:
        self.run_id = run_id
        self.otid = otid
        self.shares_otid = shares_otid
        self.is_repeated = is_repeated
        """Whether the run was opened by this very request, sent before."""
        if is_repeated:
            words = f"The same request, by its otids, was made before, and opened run {run_id}."
        elif shares_otid:
            words = f"The otid {otid!r} belongs to another request, answered by run {run_id}."
        else:
            words = f"The conversation is busy until run {run_id} has ended."
        super().__init__(words, run_id=run_id)


class ConversationDeleted(BrokerError):
    """The conversation was deleted: no run starts in it."""

    def __init__(self, *, conversation_id: str) -> None:
        self.conversation_id = conversation_id
        super().__init__(conversation_id=conversation_id)


class WrongAgent(BrokerError):
    """The conversation is another agent's."""

    def __init__(self, *, conversation_id: str, agent_id: str) -> None:
        self.conversation_id = conversation_id
        self.agent_id = agent_id
        super().__init__(conversation_id=conversation_id, agent_id=agent_id)


class Unauthenticated(BrokerError):
    """Who asks has not shown who that is.

    `reason` is for whoever sent the credential, and shows nothing of it; None: none was sent. `cause` is counted.
    """

    def __init__(self, *, reason: str | None = None, cause: Cause = "missing") -> None:
        self.reason = reason
        self.cause = cause
        super().__init__(reason or "")


class Forbidden(BrokerError):
    """The credential does not allow this."""

    def __init__(self, detail: str, *, scope: str | None = None) -> None:
        self.scope = scope
        """The scope that would, if one alone would."""
        super().__init__(detail)


class LimitReached(BrokerError):
    """Whoever asks has had as much as they may for now.

    `detail` is for them; `seconds` is when there is room for one more, as far as that can be told.
    """

    def __init__(self, detail: str, *, limit: str, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        super().__init__(detail)


class Draining(BrokerError):
    """This process is to stop, and opens no further runs."""


class AgentFailed(BrokerError):
    """The agent ended with an error.

    `error_type` is one of the catalogue in `runstream.schemas.errors` or a name of the agent's own;
    `message` and `detail` go to the client as they are (None: the catalogue's text).
    """

    def __init__(self, error_type: str, *, message: str | None = None, detail: str | None = None) -> None:
        self.error_type = error_type
        self.message = message
        super().__init__(detail or "", error_type=error_type)


class InvalidAgent(BrokerError):
    """The agent cannot be used as it is given."""


class TopologyError(BrokerError):
    """The streams in JetStream are not as this configuration needs them."""


class ServerTooOld(TopologyError):
    """This nats-server is too old."""


class InvalidSettings(BrokerError):
    """A setting is not valid."""


class EmbeddedServerError(BrokerError):
    """The embedded nats-server did not start."""
