"""Everything is killed, nothing is lost, and a checker proves it: `make chaos`."""
