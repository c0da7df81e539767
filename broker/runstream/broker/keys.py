"""The names of the index: every key there is, and the subjects they are stored under and republished on.

    run.<tenant>.<run_id>                    the run's record
    request.<tenant>.<run_id>                what its agent is asked, until the run has ended
    lease.<run_id>                           its writer's proof of life; its value is the tenant
    cancel.<run_id>                          a wish that it end; its value is the tenant
    claim.<tenant>.<scope>.<otids>           the run that answers this very request
    otid.<tenant>.<otid>                     the newest run that holds this otid
    conversation.<tenant>.<conversation_id>  the conversation, its active run, its latest run
    agent.<tenant>.<agent_id>                its latest run
    approval.<tenant>.<scope>                the run that waits for approval
    ticket.<ticket>                          whom a ticket lets in, until it was used; or a session, until it is over
    pulse.<broker>                           proof that this broker can write

What a client chose freely stands in a key as a digest. A scope is the conversation, or else the agent.

Credentials that were revoked have a bucket of their own, `REVOKED`: no log tells of them, so that they must outlast an
index that is lost.

    <key>                                    a credential that admits nobody any more
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BUCKET",
    "KV_OPERATION",
    "LEASE_SECONDS",
    "LIVE_INDEX",
    "REVOKED",
    "SWEPT_KINDS",
    "agent_key",
    "approval_key",
    "cancel_key",
    "claim_key",
    "conversation_key",
    "digest",
    "is_token",
    "key_of",
    "lease_key",
    "live_subject",
    "otid_key",
    "pulse_key",
    "request_key",
    "run_key",
    "subject_of",
    "ticket_key",
]

BUCKET = "RUNSTREAM"
REVOKED = "RUNSTREAM_REVOKED"
KV_OPERATION = "KV-Operation"
"""The header of a key that is deleted."""
SWEPT_KINDS = ("claim", "otid", "agent", "approval", "request", "lease", "cancel", "run", "ticket", "pulse")
"""All that a key may be (its first token) but `conversation`, which is kept."""
LEASE_SECONDS = "Rs-Lease"
"""The header of a lease that says how long its writer's lease is; 0: its writer has let it go."""
LIVE_INDEX = "index"
"""What stands before a key in the subject it is republished on."""
_TOKEN = re.compile(r"[-/_=a-zA-Z0-9]+")


def is_token(value: str) -> bool:
    """Tell whether this may be one part of a key, as the tenant in it is."""
    return _TOKEN.fullmatch(value) is not None


def digest(value: str) -> str:
    """Stand for a value of a client's choice in a key: 128 bits, in characters a key may have."""
    hashed = hashlib.sha256(value.encode(errors="surrogatepass")).digest()
    return base64.urlsafe_b64encode(hashed[:16]).decode().rstrip("=")


def subject_of(key: str, bucket: str = BUCKET) -> str:
    """Give the subject a key, or a pattern of keys, is stored under."""
    return f"$KV.{bucket}.{key}"


def live_subject(key: str) -> str:
    """Give the subject a key, or a pattern of keys, is republished on once it is stored."""
    return f"{LIVE_INDEX}.{key}"


def key_of(subject: str, bucket: str = BUCKET) -> str:
    """Read the key from the subject it is stored under or republished on."""
    return subject.removeprefix(f"$KV.{bucket}.").removeprefix(f"{LIVE_INDEX}.")


def run_key(tenant: str, run_id: str) -> str:
    """Name a run's record."""
    return f"run.{tenant}.{run_id}"


def request_key(tenant: str, run_id: str) -> str:
    """Name what a run's agent is asked."""
    return f"request.{tenant}.{run_id}"


def lease_key(run_id: str) -> str:
    """Name a run's lease."""
    return f"lease.{run_id}"


def cancel_key(run_id: str) -> str:
    """Name the wish that a run end."""
    return f"cancel.{run_id}"


def conversation_key(tenant: str, conversation_id: str) -> str:
    """Name a conversation."""
    return f"conversation.{tenant}.{conversation_id}"


def agent_key(tenant: str, agent_id: str) -> str:
    """Name an agent."""
    return f"agent.{tenant}.{agent_id}"


def approval_key(tenant: str, scope: str) -> str:
    """Name the run that waits for approval in a conversation, or with an agent."""
    return f"approval.{tenant}.{digest(scope)}"


def ticket_key(ticket_digest: str) -> str:
    """Name the entry of a ticket, by its digest."""
    return f"ticket.{ticket_digest}"


def pulse_key(broker_id: str) -> str:
    """Name a broker's proof that it can write."""
    return f"pulse.{broker_id}"


def otid_key(tenant: str, otid_digest: str) -> str:
    """Name the newest run that holds an otid, by its digest."""
    return f"otid.{tenant}.{otid_digest}"


def claim_key(tenant: str, scope: str, otid_digests: Sequence[str]) -> str:
    """Name the run that answers a request: its otids' digests, in order, within a conversation or an agent."""
    # Each otid is hashed on its own: joined with a separator, two lists could come out the same.
    return f"claim.{tenant}.{digest(scope)}.{digest('.'.join(otid_digests))}"
