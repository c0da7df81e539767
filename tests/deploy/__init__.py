"""What is shipped under deploy/, held to what it is for with the real programs that read it."""
