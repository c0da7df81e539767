"""The image, the chart and the proxies, with the programs that judge them: `make test-deploy`."""
