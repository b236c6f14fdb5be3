"""Coordinates of the axes, and the structure that they allow."""
