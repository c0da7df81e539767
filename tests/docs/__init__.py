"""What README and docs show, run as it stands."""
