"""Structured linear algebra: no probability, no devices."""
