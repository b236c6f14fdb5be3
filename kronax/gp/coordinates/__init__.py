"""Coordinates as they were given, and which of them are the same."""
