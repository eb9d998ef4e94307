"""Measures the claims again, one experiment at a time, and writes the page from what was measured.

    python -m benchmarks.claims run pretraining   # trains and sweeps what is missing, then measures
    python -m benchmarks.claims measure sizes     # only gathers what the runs hold
    python -m benchmarks.claims page              # docs/claims.md and its plots, from the results

Run it from the root of the repository, with DLM_DATA_DIR (holds Multi30k) and DLM_MODELS_DIR (holds
e5-small-en-de-fr) set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.claims.experiments import EXPERIMENTS

RESULTS, PAGE = Path("docs/claims"), Path("docs/claims.md")


def main() -> None:
    """Does what the arguments say."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("run", "measure", "page"))
    parser.add_argument("names", nargs="*", metavar="EXPERIMENT", help="default: all")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - EXPERIMENTS.keys()
    if unknown:
        parser.error(f"there is no {sorted(unknown)[0]}: it can be {', '.join(EXPERIMENTS)}")
    if arguments.action == "page":
        from benchmarks.claims.page import write_page

        print(write_page(RESULTS, PAGE))
        return
    from benchmarks.claims.measuring import measure, write
    from benchmarks.claims.running import run

    for name in arguments.names or EXPERIMENTS:
        if arguments.action == "run":
            run(EXPERIMENTS[name])
        print(write(measure(EXPERIMENTS[name]), RESULTS))


if __name__ == "__main__":
    main()
