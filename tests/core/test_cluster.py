"""The durable core on a cluster of three: nothing is lost with a leader."""
