"""Operators on one axis."""
