"""As many connections as the system grants a service: it has to ask, once, at its start."""

from __future__ import annotations

import resource
from contextlib import suppress

__all__ = ["allow_descriptors"]


def allow_descriptors() -> None:
    """Take all the file descriptors that this process may have; where the system does not let it, leave them.

    Shells and systemd start a process with 1,024, which is what `select` can hold, and let it raise that itself to
    the hard limit. Nothing here selects: with 1,024 a port would be full at 960 readers.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
