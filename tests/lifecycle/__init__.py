"""The life of a run: its beginning, its writers, its end."""
