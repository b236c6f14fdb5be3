"""The noise of a Gaussian process on a grid."""
