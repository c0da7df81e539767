"""A platform that writes its runs itself."""
