"""Pure logic: no server, no socket, no file but the source."""
