"""What devices share out, and how."""
