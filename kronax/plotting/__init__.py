"""Pictures; they need matplotlib, `pip install "kronax[plot]"`."""

from kronax.plotting.covariances import plot_kernels as plot_kernels
from kronax.plotting.covariances import plot_spectra as plot_spectra
from kronax.plotting.fits import plot_losses as plot_losses
from kronax.plotting.fits import plot_profile as plot_profile
from kronax.plotting.predictions import plot_maps as plot_maps
from kronax.plotting.predictions import plot_series as plot_series
from kronax.plotting.report import draw_report as draw_report
