"""What the environment sets that nobody reads: a misspelt setting would be none, and nobody would know."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

import structlog

from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.auth.settings import AuthSettings
from runstream.broker.limits.settings import LimitSettings
from runstream.broker.settings import BrokerSettings
from runstream.gateway.settings import BrokerServiceSettings, GatewayServiceSettings, GatewaySettings, UpSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KNOWN", "unknown_settings", "warn_of_unknown_settings"]

log = structlog.get_logger(__name__)

PREFIX: Final = "RUNSTREAM_"
KINDS: Final = (
    BrokerSettings,
    UpstreamSettings,
    GatewaySettings,
    GatewayServiceSettings,
    BrokerServiceSettings,
    UpSettings,
    AuthSettings,
    LimitSettings,
)
OF_OPTIONS: Final = frozenset(
    {
        "RUNSTREAM_INGEST_URL",
        "RUNSTREAM_KEY",
        "RUNSTREAM_KEY_FILE",
        "RUNSTREAM_LOG_JSON",
        "RUNSTREAM_LOG_LEVEL",
        "RUNSTREAM_URL",
    }
)
"""What the command line reads itself."""

KNOWN: Final = OF_OPTIONS | {
    f"{kind.model_config['env_prefix']}{name}".upper() for kind in KINDS for name in kind.model_fields
}
"""The settings of all services together: they may share one environment."""

OF_KUBERNETES: Final = re.compile(
    r".*_SERVICE_(HOST|PORT(_.*)?)|.*_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|.*_PORT"
)
"""What it tells every pod of a service that is called runstream, or begins so."""


def unknown_settings(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Return the names that are set and mean nothing, each with the setting that is spelt most like it, if one is."""
    names = [name for name in environment if name.upper().startswith(PREFIX) and name.upper() not in KNOWN]
    return {
        name: next(iter(get_close_matches(name.upper(), KNOWN, n=1, cutoff=0.8)), None)
        for name in sorted(names)
        if not OF_KUBERNETES.fullmatch(name)
    }


def warn_of_unknown_settings() -> None:
    """Log what the environment sets that means nothing; not to what: it may be secret."""
    for name, nearest in unknown_settings(os.environ).items():
        log.warning("setting_unknown", name=name, **({} if nearest is None else {"did_you_mean": nearest}))
