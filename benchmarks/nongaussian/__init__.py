"""W11: counts, yes or no and outliers by Gaussian sites: accuracy, calibration, speed, and peers.

Every section has results of its own, so that one may be run again without the others:
`python -m benchmarks nongaussian.accuracy`. What a section has done is stored as it comes.
"""

from importlib import import_module

SECTIONS = ("accuracy", "calibration", "speed", "others")


def run(quick: bool) -> None:
    """All sections, the short ones first."""
    for section in SECTIONS:
        print(f"--- nongaussian.{section}")
        import_module(f"benchmarks.nongaussian.{section}").run(quick)
