"""What a value of a rewritten program is, where it is no array."""
