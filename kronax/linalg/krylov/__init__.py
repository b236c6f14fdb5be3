"""Conjugate gradients, probes and their certificates."""
