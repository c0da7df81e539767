"""A real page in a real browser, in front of real gateways: `make test-browser`."""
