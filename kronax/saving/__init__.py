"""Models, fits and posteriors in files."""

from kronax.saving.verbs import load as load
from kronax.saving.verbs import save as save
