"""Run workloads by name, then draw the report from their results."""

import argparse
from importlib import import_module

from benchmarks.nongaussian import SECTIONS

WORKLOADS = (
    "gradients",
    "likelihood",
    "solve",
    "matvec",
    "scale",
    "mcmc",
    "fitting",
    "start",
    "whitening",
    "posterior",
    "gaps",
    "preconditioners",
    "certificates",
    "coverage",
    "precision",
    "markov",
    "markov_gaps",
    "markov_nuts",
    "markov_lines",
    "many_gaps",
    "nongaussian",
    "rewrite",
)
# What is run by name alone.
BY_NAME = ("report", "gpu", "devices")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help=f"what to run, of {', '.join((*WORKLOADS, *BY_NAME))}, or WORKLOAD.SECTION of one "
        "that has sections; all but gpu by default, devices as the last part of scale",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, few rounds; results are kept apart"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="PART",
        help="of a section: this part alone, the rows of the others are kept",
    )
    options = parser.parse_args()
    known = {*WORKLOADS, *BY_NAME, *(f"nongaussian.{section}" for section in SECTIONS)}
    unknown = set(options.names) - known
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    for name in options.names or (*WORKLOADS, "report"):
        print(f"--- {name}")
        only = {"only": options.only} if options.only else {}
        import_module(f"benchmarks.{name}").run(options.quick, **only)


if __name__ == "__main__":
    main()
