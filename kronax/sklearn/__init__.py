"""Grids for scikit-learn; imported when `kx.sklearn` is asked for, as it subclasses its classes."""

from kronax.sklearn.regressor import GridRegressor as GridRegressor
