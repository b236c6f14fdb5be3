"""Gaussian processes on a grid."""
