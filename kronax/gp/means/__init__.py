"""Mean functions, and coefficients fitted or integrated out."""
