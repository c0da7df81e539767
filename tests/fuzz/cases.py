"""How many cases there are, and what each of them has to keep to."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Final

from hypothesis import HealthCheck, settings

ASKED_FOR: Final = os.environ.get("RUNSTREAM_FUZZ_CASES")
CASES: Final = int(ASKED_FOR or 2000)
"""In all modules together: a tenth of what `make fuzz` runs."""
BOUND_SECONDS: Final = 8.0
"""What a case may take, of which the product's own bounds in `tests.fuzz.conftest` are a small part."""


def fuzzed(share: float) -> settings:
    """The settings of a test that has this share of all cases.

    They are the same ones in every run of the suite; who asks for a number of them gets others each time, and is told
    how to have those again that fail.
    """
    return settings(
        max_examples=max(1, round(CASES * share)),
        derandomize=ASKED_FOR is None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )


@contextlib.asynccontextmanager
async def bounded() -> AsyncIterator[None]:
    """Fail what hangs."""
    try:
        async with asyncio.timeout(BOUND_SECONDS):
            yield
    except TimeoutError as error:
        complaint = f"it hangs: nothing has come of it for {BOUND_SECONDS:g} s"
        raise AssertionError(complaint) from error
