"""Names in prose lead to their page: `kx.solve`, `post.mean(axes=…)`, `jax.jit`, and examples."""

import re

from docutils import nodes
from sphinx import addnodes

# What a variable of the documentation is an instance of.
VARIABLES = {
    "kx": "kronax",
    "gp": "kronax.GridGP",
    "post": "kronax.Posterior",
    "result": "kronax.FitResult",
    "op": "kronax.AbstractOperator",
}
EXAMPLE = re.compile(r"examples/(\w+)\.py$")
NAME = re.compile(r"(\w+)((?:\.\w+)+)(?:\(.*\))?$", re.DOTALL)
LIBRARIES = {"jax", "numpyro", "equinox", "xarray", "optax"}
SHORT = {"jaxlib._jax.": "", "jaxtyping.": "", "jax.Array": "Array"}


def target(text):
    """Domain, kind and name of what a literal names; None for what has no page."""
    if example := EXAMPLE.match(text):
        return "std", "doc", f"/tutorials/{example[1]}"
    name = NAME.match(text)
    known = name and (VARIABLES.get(name[1]) or (name[1] in LIBRARIES and name[1]))
    return ("py", "obj", known + name[2]) if known else None


def link_names(app, doctree):
    """Every literal that has a page, outside titles and of what is no link yet."""
    for literal in list(doctree.findall(nodes.literal)):
        found = target(literal.astext())
        if found is None or isinstance(literal.parent, nodes.reference | nodes.title):
            continue
        options = dict(zip(("refdomain", "reftype", "reftarget"), found, strict=True))
        reference = addnodes.pending_xref(
            "", refdoc=app.env.docname, refwarn=False, refexplicit=True, **options
        )
        literal.replace_self(reference)
        reference += literal


def shorten_types(app, doctree):
    """Write `Array` as the source does, not by the private path that it is defined at."""
    if not app.env.docname.startswith("generated/"):
        return
    for text in list(doctree.findall(nodes.Text)):
        short = str(text)
        for long, new in SHORT.items():
            short = short.replace(long, new)
        if short != str(text):
            text.parent.replace(text, nodes.Text(short))


def shorten_signature(app, what, name, obj, options, signature, returns):
    """The same in signatures."""
    return tuple(
        text and text.replace("jaxlib._jax.Array", "Array") for text in (signature, returns)
    )


def leave_out_scikit_learn(app, what, name, obj, skip, options):
    """What an estimator has from scikit-learn is documented there, in labels of its own."""
    return True if (getattr(obj, "__module__", None) or "").startswith("sklearn.") else None


def public_addresses(package):
    """Where a name is defined, to where it is documented, for links in code."""
    found = {}
    for name, value in vars(package).items():
        home = getattr(value, "__module__", "") or ""
        if name.startswith("_") or not home.startswith(package.__name__):
            continue
        here, there = f"{home}.{value.__qualname__}", f"{package.__name__}.{name}"
        found[here] = there
        if isinstance(value, type):
            members = (key for key in dir(value) if not key.startswith("_"))
            found.update({f"{here}.{key}": f"{there}.{key}" for key in members})
    return found


def setup(app):
    """Connect them."""
    app.connect("autodoc-skip-member", leave_out_scikit_learn)
    app.connect("doctree-read", link_names)
    app.connect("doctree-read", shorten_types)
    app.connect("autodoc-process-signature", shorten_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
