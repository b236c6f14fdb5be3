"""Programs with dense Kronecker products, rewritten by themselves."""

from kronax.rewriting.report import DenseProductError as DenseProductError
from kronax.rewriting.report import DenseProductWarning as DenseProductWarning
from kronax.rewriting.rewrite import rewrite as rewrite
