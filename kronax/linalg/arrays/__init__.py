"""Arrays and derivative rules: nothing here knows an operator."""
