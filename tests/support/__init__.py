"""What the tests share: servers, processes, and waiting for a condition."""
