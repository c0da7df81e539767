"""How much load: the short form, which is run with all other tests, and the long one, which is `make load`."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """Numbers of one form. Clients come at `clients_per_minute`, or as fast as the machine takes them."""

    clients: int
    clients_in_process: int
    clients_per_minute: int
    stalled_readers: int
    stalled_uploads: int
    dropped_uploads: int
    killed_writers: int
    refused: int
    seconds: float
    """What one test may take, on a machine that others use as well."""


SHORT = Form(
    clients=1_700,
    clients_in_process=200,
    clients_per_minute=10_000,
    stalled_readers=40,
    stalled_uploads=40,
    dropped_uploads=100,
    killed_writers=3,
    refused=200,
    seconds=120,
)
LONG = Form(
    clients=100_000,
    clients_in_process=5_000,
    clients_per_minute=10_000,
    stalled_readers=400,
    stalled_uploads=400,
    dropped_uploads=5_000,
    killed_writers=30,
    refused=10_000,
    seconds=3600,
)
FORM = {"short": SHORT, "long": LONG}[os.environ.get("RUNSTREAM_TEST_LOAD", "short")]
