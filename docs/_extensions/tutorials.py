"""The examples as pages: notebooks in Python files, which a reader can take away."""

import shutil
from pathlib import Path

import jupytext
from docutils import nodes

FOLDER = "tutorials"


def read(text):
    """A notebook, with what Jupyter would have written about its language."""
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "python"}
    return notebook


def offer_downloads(app, doctree):
    """Links to the notebook and the script, below the title of a tutorial."""
    folder, _, name = app.env.docname.rpartition("/")
    if folder != FOLDER:
        return
    files = {"Jupyter notebook": f"{name}.ipynb", "Python script": f"{name}.py"}
    links = " · ".join(f'<a href="{file}" download>{text}</a>' for text, file in files.items())
    links = f'<p class="downloads">{links} · <a href="../gallery.html">Gallery</a></p>'
    title = next(doctree.findall(nodes.title))
    title.parent.insert(title.parent.index(title) + 1, nodes.raw("", links, format="html"))


def write_downloads(app, exception):
    """Put both files where those links point."""
    if exception or app.builder.format != "html":
        return
    for script in (Path(app.srcdir) / FOLDER).glob("*.py"):
        there = Path(app.outdir) / FOLDER / script.name
        shutil.copyfile(script, there)
        jupytext.write(read(script.read_text(encoding="utf-8")), there.with_suffix(".ipynb"))


def setup(app):
    """Connect both."""
    app.connect("doctree-read", offer_downloads)
    app.connect("build-finished", write_downloads)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
