"""The process: noise, terms, likelihood, how it is solved."""
