"""`python -m benchmarks.peers install [NAME …]`: make the environments of all or some peers."""

import argparse

from benchmarks.peers.environments import REQUIREMENTS, install, is_installed


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("action", choices=("install", "list"))
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(REQUIREMENTS)}")
    options = parser.parse_args()
    unknown = set(options.names) - set(REQUIREMENTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    for name in options.names or REQUIREMENTS:
        if options.action == "install":
            install(name)
        else:
            print(f"{name}: {'installed' if is_installed(name) else 'not installed'}")


if __name__ == "__main__":
    main()
