"""Exact solves with gaps."""
