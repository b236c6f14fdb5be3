"""Sphinx configuration."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = PROJECT["name"]
author = PROJECT["authors"][0]["name"]
copyright = author
version = release = PROJECT["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "jupyter_execute"]
templates_path = ["_templates"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Examples and README code run in the tests; the pages show the pictures committed beside them.
nb_execution_mode = "off"

autosummary_generate = True
autodoc_default_options = {"show-inheritance": True}
autodoc_member_order = "bysource"
# Shapes stay in the signature, as jaxtyping writes them; the Args section does not repeat them.
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
default_role = "code"  # so that single backticks in docstrings are code
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"kronax {release}"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def shorten_array(app, what, name, obj, options, signature, returns):
    """Write `Array` as the source does, not by the private path it is defined at."""
    return tuple(
        text and text.replace("jaxlib._jax.Array", "Array") for text in (signature, returns)
    )


def setup(app):
    """Connect the hook above."""
    app.connect("autodoc-process-signature", shorten_array)
