"""Run workloads by name, then draw the report from their results."""

import argparse
from importlib import import_module

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
)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help=f"what to run, of {', '.join(WORKLOADS)} and report; all of them by default",
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, few rounds; results are kept apart"
    )
    options = parser.parse_args()
    unknown = set(options.names) - {*WORKLOADS, "report"}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    for name in options.names or (*WORKLOADS, "report"):
        print(f"--- {name}")
        import_module(f"benchmarks.{name}").run(options.quick)


if __name__ == "__main__":
    main()
