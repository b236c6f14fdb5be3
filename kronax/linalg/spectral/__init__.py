"""Values and derivative rules by eigendecompositions of the axes."""
