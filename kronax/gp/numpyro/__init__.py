"""Processes inside NumPyro models."""
