"""One function each: solve, log-determinant, diagonals, draws."""
