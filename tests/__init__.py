"""The tests of runstream: unit, contract, acceptance, clients, chaos, bench, deploy."""
