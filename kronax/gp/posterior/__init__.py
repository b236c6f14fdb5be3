"""The process given data."""
