"""What runs in the peers' own environments: nothing of it is imported, and it imports nothing of the project's."""
