"""The product as its users run it: real nats-servers, sockets, processes and kills."""
