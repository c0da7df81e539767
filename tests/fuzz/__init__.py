"""Bad input, made by the thousand: see `tests.fuzz.cases` for how many."""
