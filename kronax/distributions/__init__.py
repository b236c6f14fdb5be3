"""NumPyro distributions with Kronecker structure."""

from kronax.distributions.batches import promote_grid as promote_grid
from kronax.distributions.batches import vmap_over_grid as vmap_over_grid
from kronax.distributions.normal import KroneckerNormal as KroneckerNormal
