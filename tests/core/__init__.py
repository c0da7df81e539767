"""The durable core on a real nats-server: streams, writing, reading, the index, executing, and every way they fail."""
