"""Starting values from data."""
