"""Who is measured beside runstream: the real thing, as it is installed from its registry, and the floor."""
