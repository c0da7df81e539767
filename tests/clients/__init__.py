"""Real client libraries, unmodified, against a runstream."""
