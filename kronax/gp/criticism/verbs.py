"""What a posterior is asked about whether its model fits."""

from kronax.gp.criticism.diagnostics import Diagnostics, diagnostics
from kronax.gp.criticism.held_out import axis_number
from kronax.gp.criticism.leave_one_out import LeaveOneOut, leave_one_out
from kronax.gp.criticism.leave_slice_out import LeaveSliceOut, leave_slice_out
from kronax.gp.model.marginal_likelihood import of_its_model
from kronax.gp.model.process import AbstractPosterior


class CriticisedPosterior(AbstractPosterior):
    """A posterior that predicts its own data, each from others."""

    @of_its_model
    def leave_one_out(self) -> LeaveOneOut:
        """Every noisy observation as predicted from all the others, with the same parameters.

        `means, variances = post.leave_one_out()`; scores, standardised errors, coverage and
        outliers are in the same object. Exact, from the diagonal of the inverse, at `2 N Σ n_i`
        operations; right to first order, raises beyond. By iterations the variances come from
        draws, values only, with their standard errors in `variance_error`.
        """
        return leave_one_out(self)

    @of_its_model
    def leave_slice_out(self, axis: int | str) -> LeaveSliceOut:
        """Every slice along an axis, a year or a station, as predicted from all the others.

        The parameters stay. Exact in closed form with any noise, at `4 N Σ n_i` operations; with a
        `kx.MarginalMean` its coefficients are estimated from the other slices as well. Right to
        first order, raises beyond; values only with low-rank axes.

        Args:
            axis: its name or number.

        Raises:
            KeyError: if the axis is unknown.
            ValueError: if coefficients of the mean are not determined without some slice.
        """
        return leave_slice_out(self, axis_number(self.gp, axis))

    @of_its_model
    def diagnostics(self) -> Diagnostics:
        """Does the model fit: leave-one-out errors, independent residuals, coverage and outliers.

        `print(post.diagnostics())` is a table; `4 N Σ n_i` operations.
        """
        return diagnostics(self)
