"""Other libraries, each in a virtual environment and a process of its own.

`python -m benchmarks.peers install` makes the environments under `.peers/`. A file `with_NAME.py`
holds what one library computes; it runs there and knows nothing of kronax.
"""
