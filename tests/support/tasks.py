"""What runs in the test's event loop."""

import asyncio
from collections import Counter


def tasks() -> Counter[str]:
    """What runs in this event loop, by function: some of it begins anew from time to time."""
    coroutines = [task.get_coro() for task in asyncio.all_tasks() if not task.done()]
    return Counter(str(getattr(coroutine, "__qualname__", coroutine)) for coroutine in coroutines)
