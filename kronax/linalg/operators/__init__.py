"""The grid: Kronecker products, their sums, noise, gaps."""
