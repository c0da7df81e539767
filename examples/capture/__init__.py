"""A platform that knows nothing of runstream, behind it."""
