"""Results of iterations and random probes, with their certificates."""
