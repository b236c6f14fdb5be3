"""Processes with a likelihood that is not normal, by Gaussian sites."""
