"""Does a model fit its data."""
