"""Parts of a grid, and data sets, each where it is."""
