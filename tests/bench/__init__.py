"""What runstream costs, measured from outside: `make bench`."""
