"""Distributions of observations given the latent function at their cells."""
