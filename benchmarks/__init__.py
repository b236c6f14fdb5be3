"""Speed and accuracy of kronax beside its alternatives: `python -m benchmarks --help`."""

import os
import sys

# OpenBLAS reads this when it is loaded. Its threads spin: with more than one, small decompositions
# on a busy machine are a hundred times slower, and two at once fight for the cores.
if "numpy" in sys.modules and os.environ.get("OPENBLAS_NUM_THREADS") != "1":
    raise RuntimeError(
        "benchmarks must be imported before NumPy, or with OPENBLAS_NUM_THREADS=1; "
        f"got OPENBLAS_NUM_THREADS={os.environ.get('OPENBLAS_NUM_THREADS')}. Set it and restart."
    )
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["JAX_ENABLE_X64"] = "1"
