"""NumPyro distributions with Kronecker structure."""

from kronax.distributions.batches import promote_grid as promote_grid
from kronax.distributions.batches import vmap_over_grid as vmap_over_grid
from kronax.distributions.divergences import kl_of_normals as kl_of_normals
from kronax.distributions.masked import MaskedKroneckerNormal as MaskedKroneckerNormal
from kronax.distributions.normal import KroneckerNormal as KroneckerNormal
from kronax.distributions.pointwise import pointwise_log_likelihood as pointwise_log_likelihood
from kronax.distributions.student_t import KroneckerStudentT as KroneckerStudentT
from kronax.distributions.student_t import vmap_over_student_t as vmap_over_student_t
from kronax.distributions.whitening import KroneckerCholeskyTransform as KroneckerCholeskyTransform
from kronax.distributions.whitening import KroneckerReparam as KroneckerReparam
