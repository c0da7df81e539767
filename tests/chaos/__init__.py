"""Everything is killed, cut and filled up, and the history of what was written and read is proven to be right."""
