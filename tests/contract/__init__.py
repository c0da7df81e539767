"""The wire contract: what a client of the Letta streaming API sees, byte for byte where it matters."""
