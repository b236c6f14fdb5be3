"""Sphinx configuration: `python -m sphinx -b html docs docs/_build/html` builds the site.

The examples are its tutorials: notebooks in Python files, executed here with a cache. With
`-t everyday` three of them are, with `-t pages` none.
"""

import os
import sys
import tomllib
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "_extensions"))

import names  # noqa: E402

import kronax  # noqa: E402

PROJECT = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]

project = PROJECT["name"]
author = PROJECT["authors"][0]["name"]
copyright = author
version = release = PROJECT["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_codeautolink",
    "sphinx_copybutton",
    "sphinx_design",
    # Mathematics without a content delivery network.
    "sphinx-mathjax-offline",
    "names",
    "tutorials",
]
exclude_patterns = ["_build", "jupyter_execute", "*.py", "_extensions"]
templates_path = ["_templates"]

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# A tutorial is a file of `examples/`, seen here through a link of the file system.
EVERYDAY = {"kernels", "grunfeld", "labelled"}
nb_custom_formats = {".py": "tutorials.read"}
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS.parent / ".jupyter_cache")
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
# Pages stand still: no bars of progress, nor the warning that a notebook could show better ones.
os.environ |= {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}
# Of the shell that builds: without a screen, its notebooks would show no pictures.
os.environ.pop("MPLBACKEND", None)
if tags.has("pages"):
    nb_execution_mode = "off"
elif tags.has("everyday"):
    nb_execution_excludepatterns = [
        f"tutorials/{path.name}"
        for path in (DOCS / "tutorials").glob("*.py")
        if path.stem not in EVERYDAY
    ]

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

# Kept here, so that a build needs no network.
intersphinx_mapping = {
    name: (address, f"inventories/{name}.inv")
    for name, address in {
        "jax": "https://docs.jax.dev/en/latest",
        "equinox": "https://docs.kidger.site/equinox",
        "numpyro": "https://num.pyro.ai/en/stable",
        "optax": "https://optax.readthedocs.io/en/latest",
        "xarray": "https://docs.xarray.dev/en/stable",
    }.items()
}

# The blocks of a page are one program.
codeautolink_concat_default = True
codeautolink_inventory_map = names.public_addresses(kronax)

html_theme = "furo"
html_title = f"kronax {release}"
html_static_path = ["_static"]
html_css_files = ["kronax.css"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
