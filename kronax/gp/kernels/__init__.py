"""Covariance functions of one axis."""
