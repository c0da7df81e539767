"""Programs to start from: each is started by one command, and held to what it says by a test."""
