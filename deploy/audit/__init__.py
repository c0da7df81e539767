"""Looks up what is installed in the databases of known vulnerabilities."""
