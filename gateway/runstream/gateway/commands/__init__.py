"""The commands of `runstream`, a file each; `runstream.gateway.cli` imports the one that is asked for, and no other."""
