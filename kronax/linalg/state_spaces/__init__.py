"""Gaussian processes along a sorted axis as linear recursions of a few numbers."""
