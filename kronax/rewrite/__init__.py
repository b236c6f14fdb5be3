"""Programs with dense Kronecker products, rewritten by themselves."""

from kronax.rewrite.report import DenseProductError as DenseProductError
from kronax.rewrite.report import DenseProductWarning as DenseProductWarning
from kronax.rewrite.rewrite import rewrite as rewrite
