"""What is shipped under deploy/, held to what it is for by the programs that read it: `make test-deploy`."""
